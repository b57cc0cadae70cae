"""Linear layers in int8 against fp32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_builds import NARROWER, BuildKernels
from torch import Tensor

from cpulm.model import fused, int8_head_loss, int8_linear
from cpulm.model.int8_linear import Quantizer, TorchQuantizer
from cpulm.model.transformer import Transformer
from cpulm.native import library
from cpulm.native.int8 import Int8Kernels, MuonUpdate
from cpulm.native.kernels import Kernels
from cpulm.settings import ModelSettings


@pytest.fixture(scope="module", params=["torch", "kernels", *NARROWER])
def quantizer(request: pytest.FixtureRequest, build_kernels: BuildKernels) -> Quantizer:
    if request.param == "torch":
        return TorchQuantizer()
    vectors = NARROWER.get(request.param, ())
    path = build_kernels(*vectors, instead_of="-march=native" if vectors else "")
    kernels = Kernels(path)
    # Without fast instructions the same functions are right, though slow.
    return kernels.int8 or Int8Kernels(library.load(path), kernels.lanes)


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def signs(*shape: int, seed: int) -> Tensor:
    """Numbers that int8 holds exactly, as the largest there are."""
    return values(*shape, seed=seed).detach().sign()


def one(size: int) -> Tensor:
    """The unit matrix, which int8 holds exactly: a product with it is the other factor, rounded."""
    return torch.eye(size)


@pytest.mark.parametrize("rows", [37, 64, 96])
@pytest.mark.parametrize("width", [16, 48, 80, 208])
def test_factors_are_within_half_a_step(quantizer: Quantizer, rows: int, width: int) -> None:
    x = values(rows, width, seed=0).detach() * torch.logspace(-6, 6, width)
    by_row = x.abs().amax(1, keepdim=True) / 254 * 1.0001
    by_column = x.abs().amax(0) / 254 * 1.0001
    unit_left, unit_right = quantizer.left_and_right(one(width))
    left, _ = quantizer.left_and_right(x)
    assert ((quantizer.product(left, unit_right) - x).abs() <= by_row).all()
    plain, turned = quantizer.left_both(x)
    assert torch.equal(plain.values, left.values)
    padded = torch.zeros(turned.values.size(1), max(16, -(-rows // 16) * 16))
    padded.fill_diagonal_(1.0)
    found = quantizer.product(turned, quantizer.left_and_right(padded)[1])[:, :rows]
    assert ((found - x.t()).abs() <= by_column.unsqueeze(1)).all()
    if rows % 16 == 0:
        transposed, right = quantizer.right_both(x)
        assert ((quantizer.product(unit_left, transposed) - x.t()).abs() <= by_row.t()).all()
        assert (
            (quantizer.product(quantizer.left_and_right(one(rows))[0], right) - x).abs() <= by_column
        ).all()


@pytest.mark.parametrize("rows", [1, 5, 64, 97, 200])
@pytest.mark.parametrize("width", [16, 64, 112])
@pytest.mark.parametrize("depth", [16, 528, 1104])
def test_a_product_is_exact_but_for_the_rounding_of_its_factors(
    quantizer: Quantizer, rows: int, width: int, depth: int
) -> None:
    """Also of the largest bytes, whose sums come near to what an int32 holds."""
    if not isinstance(quantizer, Int8Kernels):
        pytest.skip("torch's own product")
    x, w, y = signs(rows, depth, seed=1), signs(width, depth, seed=2), signs(rows, width, seed=3)
    left, (transposed, _) = quantizer.left_and_right(x)[0], quantizer.right_both(w)
    torch.testing.assert_close(quantizer.product(left, transposed), x @ w.t(), rtol=1e-6, atol=1e-3)
    found = quantizer.product(quantizer.left_both(x)[1], quantizer.left_and_right(y)[1])
    torch.testing.assert_close(found, x.t() @ y, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("shape", [(16, 16), (64, 112), (208, 224), (400, 400)], ids=str)
def test_the_polynomial_of_a_gram_matrix_is_nearly_that_of_float32(
    quantizer: Quantizer, shape: tuple[int, int], count: int
) -> None:
    """One matrix by all threads, and several with a thread each."""
    if not isinstance(quantizer, Int8Kernels):
        pytest.skip("of the kernels")
    x = values(*shape, seed=1).detach()
    x /= torch.linalg.matrix_norm(x, ord=2)
    a, b, c = 3.4445, -4.7750, 2.0315
    gram = x @ x.mT
    exact = a * x + (b * gram + c * gram @ gram) @ x
    norm = float(x.norm())  # that of the kernels' x is one
    way = MuonUpdate(shape[0], 0.0, 0.0, -1.0, 1, (a, b * norm**2, c * norm**4))
    gradients = [x * 4.0**n for n in range(count)]
    found = [torch.zeros(shape) for _ in gradients]
    quantizer.muon(found, gradients, [torch.zeros(shape) for _ in gradients], way)
    for direction in found:
        assert (direction * norm - exact).norm() / exact.norm() < 0.02


def test_blocks_that_do_not_fit_are_refused(quantizer: Quantizer) -> None:
    if not isinstance(quantizer, Int8Kernels):
        pytest.skip("of the kernels")
    matrix = [torch.zeros(64, 64)]
    for block_rows in (24, 48):
        with pytest.raises(ValueError, match=f"64 rows in blocks of {block_rows}"):
            quantizer.muon(matrix, matrix, matrix, MuonUpdate(block_rows, 0.9, 0.0, 0.1, 5, (1.0, 1.0, 1.0)))


def test_factors_that_do_not_fit_are_refused(quantizer: Quantizer) -> None:
    if isinstance(quantizer, TorchQuantizer):
        pytest.skip("torch refuses them itself")
    left, right = quantizer.left_and_right(values(16, 32, seed=0).detach())
    with pytest.raises(ValueError, match="not a product"):
        quantizer.product(left, right)


def test_zeros_stay_zeros(quantizer: Quantizer) -> None:
    left, right = quantizer.left_and_right(torch.zeros(16, 16))
    assert not quantizer.product(left, right).any()
    assert not left.scale.any()


def test_what_is_not_a_number_stays_so(quantizer: Quantizer) -> None:
    x = torch.ones(32, 32)
    x[3, 5] = torch.nan
    left, right = quantizer.left_and_right(x)
    found = quantizer.product(left, right)
    assert found[3].isnan().all()
    assert found[:, 5].isnan().all()


@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_within_one_part_in_fifty(quantizer: Quantizer, with_bias: bool) -> None:
    x, weight = values(3, 50, 64, seed=1), values(96, 64, seed=2)
    bias = values(96, seed=3) if with_bias else None
    ours, plain = int8_linear.linear(quantizer, x, weight, bias), F.linear(x, weight, bias)
    grad = values(3, 50, 96, seed=4).detach()
    inputs = [x, weight] if bias is None else [x, weight, bias]
    pairs = [(ours, plain)]
    pairs += zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(plain, inputs, grad), strict=True
    )
    for found, exact in pairs:
        assert found.shape == exact.shape
        assert float((found - exact).detach().norm() / exact.detach().norm()) < 0.02


def test_gradients_of_micro_batches_are_added_in_their_place(quantizer: Quantizer) -> None:
    weight = values(96, 64, seed=2)
    batches = [values(50, 64, seed=seed).detach() for seed in (1, 3, 4)]

    def backward(x: Tensor) -> None:
        int8_linear.linear(quantizer, x, weight, None).square().sum().backward()

    together = torch.zeros(96, 64)
    for x in batches:
        weight.grad = None
        backward(x)
        together += torch.as_tensor(weight.grad)
    weight.grad = None
    backward(batches[0])
    first = weight.grad
    for x in batches[1:]:
        backward(x)
    assert weight.grad is first  # no other matrix was made
    torch.testing.assert_close(weight.grad, together, rtol=1e-5, atol=1e-3)


@pytest.mark.filterwarnings("ignore:grad and param do not obey")
def test_a_gradient_of_another_kind_is_left_to_torch(quantizer: Quantizer) -> None:
    """One whose memory is in another order, and a weight that is itself computed."""
    weight, x = values(96, 64, seed=2), values(50, 64, seed=1).detach()
    int8_linear.linear(quantizer, x, weight, None).sum().backward()
    assert weight.grad is not None
    once = weight.grad.clone()
    weight.grad = torch.zeros(64, 96).t()
    for _ in range(2):
        int8_linear.linear(quantizer, x, weight, None).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    weight.grad = None
    int8_linear.linear(quantizer, x, 2 * weight, None).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * once, rtol=0.02, atol=0.02)


def test_a_model_trains_in_int8_and_is_validated_in_fp32(quantizer: Quantizer) -> None:
    settings = ModelSettings(n_layer=2, n_head=2, n_embd=32, block_size=16)
    model = Transformer(settings, 64)
    model.init_weights(1)
    idx = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    exact = model(idx, targets=idx)
    exact.backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    model.use_int8(quantizer)
    loss = model(idx, targets=idx)
    assert 0 < abs(float(loss.detach() - exact.detach())) < 0.01
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        exact_grad = wanted[name]
        assert exact_grad is not None
        assert float((parameter.grad - exact_grad).norm() / exact_grad.norm()) < 0.1, name
    with torch.no_grad():
        assert float(model(idx, targets=idx)) == float(exact.detach())


def test_layers_of_odd_widths_stay_in_fp32_with_the_kernels(quantizer: Quantizer) -> None:
    settings = ModelSettings(n_layer=1, n_head=2, n_embd=24, n_inner=32, block_size=16)
    model = Transformer(settings, 64)
    model.init_weights(1)
    idx = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    exact = model(idx, targets=idx)
    model.use_int8(quantizer)
    alike = torch.equal(model(idx, targets=idx), exact)
    assert alike == (24 % quantizer.lanes != 0)


def test_rows_that_end_in_the_middle_of_a_vector_are_refused_by_the_kernels(quantizer: Quantizer) -> None:
    if isinstance(quantizer, TorchQuantizer):
        pytest.skip("torch takes any width")
    x = torch.zeros(4, quantizer.lanes + 1)
    for refused in (quantizer.left_and_right, quantizer.left_both, quantizer.right_both):
        with pytest.raises(ValueError, match="multiples"):
            refused(x)


@pytest.fixture
def kernels(quantizer: Quantizer) -> Int8Kernels:
    if not isinstance(quantizer, Int8Kernels):
        pytest.skip("the head is quantized by the kernels only")
    return quantizer


def a_head() -> tuple[Tensor, Tensor, Tensor]:
    x, weight = values(300, 64, seed=5), (values(512, 64, seed=6) * 0.2).detach().requires_grad_()
    targets = torch.randint(512, (300,), generator=torch.Generator().manual_seed(7))
    targets[::9] = fused.IGNORED
    return x, weight, targets


@pytest.mark.parametrize("bytes_at_once", [512 * 64, 512 * 130, 1 << 26])
@pytest.mark.parametrize("logits_at_once", [512 * 64, 1 << 22])
def test_the_head_is_within_one_part_in_fifty(
    kernels: Int8Kernels, logits_at_once: int, bytes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_head_loss, "INT8_PROBABILITIES_AT_ONCE", bytes_at_once)
    monkeypatch.setattr(int8_head_loss, "INT8_LOGITS_IN_CHUNK", logits_at_once)
    x, weight, targets = a_head()
    ours = int8_head_loss.head_loss(kernels, x, weight, targets)
    plain = F.cross_entropy(F.linear(x, weight), targets)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-3)
    pairs = zip(torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(plain, (x, weight)), strict=True)
    for found, exact in pairs:
        assert float((found - exact).norm() / exact.norm()) < 0.02
    assert not torch.autograd.grad(int8_head_loss.head_loss(kernels, x, weight, targets), x)[0][::9].any()


@pytest.mark.parametrize("bytes_at_once", [512 * 64, 1 << 26])
def test_what_arrives_backward_scales_the_gradients_of_the_head(
    kernels: Int8Kernels, bytes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_head_loss, "INT8_PROBABILITIES_AT_ONCE", bytes_at_once)
    x, weight, targets = a_head()
    whole = torch.autograd.grad(int8_head_loss.head_loss(kernels, x, weight, targets), (x, weight))
    eighth = torch.autograd.grad(int8_head_loss.head_loss(kernels, x, weight, targets) / 8, (x, weight))
    torch.testing.assert_close([8 * part for part in eighth], list(whole))


@pytest.mark.parametrize("bytes_at_once", [512 * 64, 1 << 26])
def test_the_heads_gradient_is_added_to_that_of_earlier_micro_batches(
    kernels: Int8Kernels, bytes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_head_loss, "INT8_PROBABILITIES_AT_ONCE", bytes_at_once)
    x, weight, targets = a_head()
    (int8_head_loss.head_loss(kernels, x, weight, targets) / 8).backward()
    assert weight.grad is not None
    first, once = weight.grad, weight.grad.clone()
    (int8_head_loss.head_loss(kernels, x, weight, targets) / 4).backward()
    assert weight.grad is first
    torch.testing.assert_close(first, 3 * once, rtol=1e-5, atol=1e-7)


def test_small_probabilities_are_rounded_but_keep_their_mean(kernels: Int8Kernels) -> None:
    """One logit of 6 among 4095 of 0: each of the small probabilities is a third of a step."""
    logits = torch.zeros(200, 4096)
    logits[:, 0] = torch.linspace(6.0, 6.02, 200)
    targets = torch.zeros(200, dtype=torch.int64)
    exact = torch.softmax(logits, -1)
    losses, (p, scale, _) = kernels.softmax(logits, targets)
    torch.testing.assert_close(losses, -exact[:, 0].log(), rtol=1e-4, atol=1e-4)
    found = p * scale[:, None]
    assert 0.2 < float((p[:, 1:] > 0).float().mean()) < 0.4
    assert float(found[:, 1:].sum(1).mean()) == pytest.approx(float(exact[:, 1:].sum(1).mean()), rel=0.02)
    assert float(found[:, 1:].mean(0).std()) < 0.2 * float(exact[0, 1])


def test_the_most_probable_entry_is_never_rounded_beyond_a_byte(kernels: Int8Kernels) -> None:
    """The largest chances come up once in a quarter of a million rows."""
    logits = torch.full((1 << 19, 16), -2.0)
    logits[:, 0] = 5.0 + torch.arange(1 << 19) * 1e-5
    _, p = kernels.softmax(logits, torch.zeros(1 << 19, dtype=torch.int64))
    assert int(p.values.min()) == 0
    assert int(p.values.max()) == 127


def test_a_target_beyond_the_vocabulary_makes_no_loss(kernels: Int8Kernels) -> None:
    losses, _ = kernels.softmax(torch.zeros(1, 16), torch.tensor([16]))
    assert losses.isnan().all()
