"""Linear layers in int8 against fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpulm.engine.machine.software import find_compiler
from cpulm.engine.precision import BlockShape, choose_int8
from cpulm.engine.remembered import Ratios
from cpulm.model import fused, quantized, quantized_head
from cpulm.model.quantized import Quantizer, TorchQuantizer
from cpulm.model.transformer import Transformer
from cpulm.native.kernels import Kernels
from cpulm.native.library import compiled
from cpulm.settings import ModelSettings


@pytest.fixture(scope="module", params=["torch", "kernels"])
def quantizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    if request.param == "torch":
        return TorchQuantizer()
    compiler, problem = find_compiler()
    if compiler is None or "MSVC" in compiler.version:
        pytest.skip(f"no compiler that takes GCC's options: {problem}")
    folder = tmp_path_factory.mktemp("kernels")
    return Kernels(compiled(compiler.command, compiler.version, "this machine", folder))


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_both_ways_of_rounding_are_within_half_a_step(quantizer: Quantizer) -> None:
    x = values(37, 48, seed=0).detach() * torch.logspace(-6, 6, 48)
    by_row, row_scale, by_column, column_scale = quantizer.quantize(x)
    assert by_row.dtype is by_column.dtype is torch.int8
    assert ((by_row * row_scale[:, None] - x).abs() <= 0.5001 * row_scale[:, None]).all()
    assert ((by_column * column_scale - x).abs() <= 0.5001 * column_scale).all()
    rows, scale = quantizer.quantize_rows(x)
    assert torch.equal(rows, by_row)
    assert torch.equal(scale, row_scale)


def test_zeros_stay_zeros(quantizer: Quantizer) -> None:
    for part in quantizer.quantize(torch.zeros(3, 16)):
        assert not part.any()


@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_within_one_part_in_fifty(quantizer: Quantizer, with_bias: bool) -> None:
    x, weight = values(3, 50, 64, seed=1), values(96, 64, seed=2)
    bias = values(96, seed=3) if with_bias else None
    ours, plain = quantized.linear(quantizer, x, weight, bias), F.linear(x, weight, bias)
    grad = values(3, 50, 96, seed=4).detach()
    inputs = [x, weight] if bias is None else [x, weight, bias]
    pairs = [(ours, plain)]
    pairs += zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(plain, inputs, grad), strict=True
    )
    for found, exact in pairs:
        assert found.shape == exact.shape
        assert float((found - exact).detach().norm() / exact.detach().norm()) < 0.02


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
    if not isinstance(quantizer, Kernels):
        pytest.skip("torch takes any width")
    x = torch.zeros(4, quantizer.lanes + 1)
    for refused in (quantizer.quantize, quantizer.quantize_rows):
        with pytest.raises(ValueError, match="multiples"):
            refused(x)


def test_int8_is_not_chosen_for_widths_that_it_does_not_take(quantizer: Quantizer, tmp_path: Path) -> None:
    ratios = Ratios(tmp_path / "ratios.json")
    chosen, reason = choose_int8(BlockShape(((8, 24), (8, 8)), rows=64), quantizer, "here", ratios)
    assert chosen == "fp32" or quantizer.lanes == 1
    assert "took" in reason or "multiples of" in reason


@pytest.fixture
def kernels(quantizer: Quantizer) -> Kernels:
    if not isinstance(quantizer, Kernels):
        pytest.skip("the head is quantized by the kernels only")
    return quantizer


def a_head() -> tuple[Tensor, Tensor, Tensor]:
    x, weight = values(300, 64, seed=5), (values(512, 64, seed=6) * 0.2).detach().requires_grad_()
    targets = torch.randint(512, (300,), generator=torch.Generator().manual_seed(7))
    targets[::9] = fused.IGNORED
    return x, weight, targets


@pytest.mark.parametrize("logits_at_once", [512 * 64, 1 << 22])
def test_the_head_is_within_one_part_in_fifty(
    kernels: Kernels, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_head, "LOGITS_AT_ONCE", logits_at_once)
    x, weight, targets = a_head()
    ours = quantized_head.head_loss(kernels, x, weight, targets)
    plain = F.cross_entropy(F.linear(x, weight), targets)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-3)
    pairs = zip(torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(plain, (x, weight)), strict=True)
    for found, exact in pairs:
        assert float((found - exact).norm() / exact.norm()) < 0.02
    assert not torch.autograd.grad(quantized_head.head_loss(kernels, x, weight, targets), x)[0][::9].any()


def test_small_probabilities_are_rounded_but_keep_their_mean(kernels: Kernels) -> None:
    """One logit of 6 among 4095 of 0: each of the small probabilities is a third of a step."""
    sums = torch.zeros(200, 4096, dtype=torch.int32)
    sums[:, 0] = torch.arange(60000, 60200)
    even = torch.full((4096,), 1e-2)
    targets = torch.zeros(200, dtype=torch.int64)
    exact = torch.softmax(sums * 1e-4, -1)
    losses, p, scale = kernels.softmax(sums, torch.full((200,), 1e-2), even, targets)
    torch.testing.assert_close(losses, -exact[:, 0].log(), rtol=1e-4, atol=1e-4)
    found = p * scale[:, None]
    assert 0.2 < float((p[:, 1:] > 0).float().mean()) < 0.4
    assert float(found[:, 1:].sum(1).mean()) == pytest.approx(float(exact[:, 1:].sum(1).mean()), rel=0.02)
    assert float(found[:, 1:].mean(0).std()) < 0.2 * float(exact[0, 1])


def test_a_target_beyond_the_vocabulary_makes_no_loss(kernels: Kernels) -> None:
    even = torch.ones(16)
    losses, _, _ = kernels.softmax(torch.zeros(1, 16, dtype=torch.int32), even[:1], even, torch.tensor([16]))
    assert losses.isnan().all()
