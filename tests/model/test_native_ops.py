"""The compiled kernels against the plain formulas, values and gradients."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpulm.model import fused, native_ops
from cpulm.model.transformer import rope_tables
from cpulm.native.kernels import AttentionShape, Kernels, QKTransform
from cpulm.native.library import KernelsUnavailableError, compile_kernels

EPS = 1e-6


@pytest.fixture(scope="module")
def kernels(kernels_library: Path) -> Kernels:
    return Kernels(kernels_library)


def values(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def assert_same(ours: Tensor, plain: Tensor, inputs: list[Tensor], tolerance: float = 2e-5) -> None:
    """Equal values, and equal gradients of ``inputs`` for a random gradient of the result."""
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    grad = values(*ours.shape, seed=99, grad=False)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(plain, inputs, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=max(1e-5, tolerance * float(b.abs().max())))


@pytest.mark.parametrize("shape", [(3, 5, 64), (1, 16), (7, 192)])
def test_rms_norm(kernels: Kernels, shape: tuple[int, ...]) -> None:
    x, weight = values(*shape), values(shape[-1], seed=1)
    assert_same(
        native_ops.rms_norm(kernels, x, weight, EPS), F.rms_norm(x, (shape[-1],), weight, EPS), [x, weight]
    )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 64), (1, 16), (1100, 32)])
def test_layer_norm(kernels: Kernels, shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight = values(*shape), values(shape[-1], seed=1)
    bias = values(shape[-1], seed=2) if with_bias else None
    assert_same(
        native_ops.layer_norm(kernels, x, weight, bias, EPS),
        F.layer_norm(x, (shape[-1],), weight, bias, EPS),
        [x, weight] if bias is None else [x, weight, bias],
        tolerance=5e-5,
    )


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 1000, 1024, 1025, 5000])
def test_sums_over_rows_have_the_same_bits_for_any_number_of_threads(kernels: Kernels, rows: int) -> None:
    x, weight, dy = values(rows, 48), values(48, seed=1), values(rows, 48, seed=2, grad=False)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            rms = torch.autograd.grad(native_ops.rms_norm(kernels, x, weight, EPS), [x, weight], dy)
            layer = native_ops.layer_norm(kernels, x, weight, weight, EPS)
            found.append([*rms, *torch.autograd.grad(layer, [x, weight], dy)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_swiglu_over_the_whole_range_of_its_gate(kernels: Kernels) -> None:
    gate_up = (values(5, 3, 96, grad=False) * 30).requires_grad_()
    gate, up = gate_up.chunk(2, -1)
    assert_same(native_ops.swiglu(kernels, gate_up), F.silu(gate) * up, [gate_up])


def test_relu_squared(kernels: Kernels) -> None:
    x = values(5, 3, 96)
    assert_same(native_ops.relu2(kernels, x), F.relu(x).square(), [x])


def test_relu_squared_hides_nothing_that_is_not_finite(kernels: Kernels) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, -0.0] * 8).requires_grad_()
    y = native_ops.relu2(kernels, x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y[:4].tolist()[1:] == [math.inf, 0.0, 0.0]
    assert grad[:4].tolist()[1:] == [math.inf, 0.0, 0.0]
    assert y[:1].isnan().all()
    assert grad[:1].isnan().all()
    (grad,) = torch.autograd.grad(native_ops.relu2(kernels, x).sum() * math.nan, x)
    assert grad.isnan().all()


@pytest.mark.parametrize("function", [native_ops.swiglu, native_ops.relu2])
def test_a_large_result_is_that_of_its_parts(
    kernels: Kernels, function: Callable[[Kernels, Tensor], Tensor]
) -> None:
    """It is written past the caches."""
    x = values(1100, 8192)
    y = function(kernels, x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    for start in range(0, 1100, 100):
        part = x[start : start + 100].detach().requires_grad_()
        y_part = function(kernels, part)
        assert torch.equal(y_part, y[start : start + 100])
        assert torch.equal(torch.autograd.grad(y_part.sum(), part)[0], grad[start : start + 100])


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_leaves_out_the_part_that_is_asked_and_keeps_the_mean(kernels: Kernels, p: float) -> None:
    x = torch.ones(500, 96, requires_grad=True)
    torch.manual_seed(3)
    y = native_ops.dropout(kernels, x, p)
    left = y != 0
    torch.testing.assert_close(y[left], torch.full_like(y[left], 1 / (1 - p)))
    assert float(left.float().mean()) == pytest.approx(1 - p, abs=0.01)
    for part in (left.float().mean(0), left.float().mean(1)):  # no row or column has a pattern
        assert float((part - (1 - p)).abs().max()) < 0.25
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(grad, y.detach())
    torch.manual_seed(3)
    assert torch.equal(native_ops.dropout(kernels, x, p), y)
    assert not torch.equal(native_ops.dropout(kernels, x, p), y)


def plain_attention(
    qkv: Tensor, heads: AttentionShape, turn: QKTransform, mask: Tensor | None = None
) -> Tensor:
    B, T, _ = qkv.shape
    parts = qkv.view(B, T, -1, heads.head_dim).split((heads.n_head, heads.n_kv_head, heads.n_kv_head), 2)
    q, k, v = parts
    if turn.q_weight is not None and turn.k_weight is not None:
        q = F.rms_norm(q, (heads.head_dim,), turn.q_weight, heads.eps)
        k = F.rms_norm(k, (heads.head_dim,), turn.k_weight, heads.eps)
    if turn.cos is not None and turn.sin is not None:
        q, k = fused.rotate(q, turn.cos, turn.sin), fused.rotate(k, turn.cos, turn.sin)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    gqa = heads.n_head != heads.n_kv_head
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa)
    return y.transpose(1, 2).reshape(B, T, -1)


def turn_of(tokens: int, width: int, *, norm: bool = True, rope: bool = True) -> QKTransform:
    q_weight, k_weight = (values(width, seed=2), values(width, seed=3)) if norm else (None, None)
    return QKTransform(q_weight, k_weight, *(rope_tables(tokens, width, 1e4) if rope else (None, None)))


@pytest.mark.parametrize("tokens", [1, 15, 48, 49, 130])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention(kernels: Kernels, tokens: int, kv_heads: int) -> None:
    heads, turn = AttentionShape(4, kv_heads, 32, EPS), turn_of(tokens, 32)
    qkv = values(2, tokens, (4 + 2 * kv_heads) * 32)
    assert turn.q_weight is not None
    assert turn.k_weight is not None
    inputs = [qkv, turn.q_weight, turn.k_weight]
    assert_same(native_ops.attention(kernels, qkv, heads, turn), plain_attention(qkv, heads, turn), inputs)


@pytest.mark.parametrize(("norm", "rope"), [(False, False), (True, False), (False, True)])
def test_attention_without_norm_or_rotation(kernels: Kernels, norm: bool, rope: bool) -> None:
    heads, turn, qkv = AttentionShape(2, 2, 16, EPS), turn_of(70, 16, norm=norm, rope=rope), values(3, 70, 96)
    assert_same(native_ops.attention(kernels, qkv, heads, turn), plain_attention(qkv, heads, turn), [qkv])


def test_attention_stops_at_the_first_token_that_each_may_see(kernels: Kernels) -> None:
    heads, turn, qkv = AttentionShape(2, 1, 16, EPS), turn_of(100, 16), values(2, 100, 64)
    first = torch.zeros(2, 100, dtype=torch.int32)
    first[0, 37:], first[0, 80:], first[1, 16:] = 37, 80, 16
    column = torch.arange(100)
    mask = ((column <= column[:, None]) & (column >= first[:, :, None])).unsqueeze(1)
    ours = native_ops.attention(kernels, qkv, heads, turn, first)
    assert_same(ours, plain_attention(qkv, heads, turn, mask), [qkv])


def test_dropout_keeps_the_mean_and_its_gradient_is_of_the_same_choice(kernels: Kernels) -> None:
    turn, qkv = turn_of(64, 16), values(1, 64, 48)
    without = native_ops.attention(kernels, qkv, AttentionShape(1, 1, 16, EPS), turn).detach()
    dropping = [AttentionShape(1, 1, 16, EPS, 0.25, seed) for seed in range(400)]
    drawn = [native_ops.attention(kernels, qkv, heads, turn).detach() for heads in dropping]
    torch.testing.assert_close(torch.stack(drawn).mean(0), without, rtol=0, atol=0.2)
    assert not torch.equal(drawn[0], drawn[1])
    heads, direction = AttentionShape(1, 1, 16, EPS, 0.25, 7), values(1, 64, 48, seed=5, grad=False)
    weights = values(1, 64, 16, seed=6, grad=False)

    def loss(x: Tensor) -> Tensor:
        return (native_ops.attention(kernels, x, heads, turn) * weights).sum()

    (grad,) = torch.autograd.grad(loss(qkv), qkv)
    step = 1e-2
    with torch.no_grad():
        difference = (loss(qkv + step * direction) - loss(qkv - step * direction)) / (2 * step)
    torch.testing.assert_close(difference, (grad * direction).sum(), rtol=2e-2, atol=2e-2)


def test_numbers_that_are_not_finite_stay_so(kernels: Kernels) -> None:
    for wrong in (float("nan"), float("inf")):
        x = values(4, 32, grad=False)
        x[2, 3] = wrong
        assert not native_ops.rms_norm(kernels, x, torch.ones(32), EPS)[2].isfinite().all()
        assert not native_ops.swiglu(kernels, x)[2].isfinite().all()
        heads, turn = AttentionShape(1, 1, 16, EPS), turn_of(4, 16)
        qkv = values(1, 4, 48, grad=False)
        qkv[0, 1, 0] = wrong
        assert not native_ops.attention(kernels, qkv, heads, turn).isfinite().all()


FEWER_THREADS = """
import sys
from pathlib import Path
import torch
from cpulm.native.kernels import Kernels
torch.set_num_threads(3)
kernels = Kernels(Path(sys.argv[1]))
x = torch.ones(64, 64)
assert torch.allclose(kernels.rms_norm(x, torch.ones(64), 0.0)[0], x)
if kernels.int8 is not None:
    left, right = kernels.int8.left_and_right(x)
    assert torch.allclose(kernels.int8.product(left, right), x @ x)
"""


def test_fewer_threads_than_asked_for_do_all_of_the_work(kernels_library: Path) -> None:
    """OpenMP may give fewer, by its settings or because the system has no more."""
    limited = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", FEWER_THREADS, str(kernels_library)], env=limited, check=True)


def test_the_same_at_a_fixed_number_of_threads(kernels: Kernels) -> None:
    heads, turn, qkv = AttentionShape(2, 2, 16, EPS, 0.1, 3), turn_of(60, 16), values(3, 60, 96)
    once, again = (native_ops.attention(kernels, qkv, heads, turn) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(*(torch.autograd.grad(y.sum(), qkv)[0] for y in (once, again)))


def test_a_width_that_is_no_multiple_of_the_vectors_does_not_fit(kernels: Kernels) -> None:
    assert native_ops.fits(kernels, torch.zeros(2, 4 * kernels.lanes), kernels.lanes)
    assert not native_ops.fits(kernels, torch.zeros(2, kernels.lanes + 1), kernels.lanes + 1)
    assert not native_ops.fits(kernels, torch.zeros(2, kernels.lanes).double(), kernels.lanes)
    assert not native_ops.fits(None, torch.zeros(2, kernels.lanes), kernels.lanes)


def test_a_compiler_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(KernelsUnavailableError, match="false"):
        compile_kernels("/bin/false", "0", "a CPU", tmp_path)
    assert list(tmp_path.iterdir()) == []
