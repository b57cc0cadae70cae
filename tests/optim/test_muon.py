"""Muon against its definition, against a matrix-by-matrix reference and against torch's own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import load
from cpulm.optim.muon import Muon, orthogonalise

SHAPES = [(12, 12), (12, 30), (30, 12), (12, 12), (4, 9)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def matrices() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 10, 40), (2, 40, 10), (1, 1, 7), (2, 6, 1)], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_singular_values_come_near_one(shape: tuple[int, ...], scale: float) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape) * scale))
    assert values.max() < 1.3
    assert values.median() > 0.65


def test_singular_vectors_and_signs_stay() -> None:
    u, _ = torch.linalg.qr(torch.randn(8, 8))
    v, _ = torch.linalg.qr(torch.randn(20, 8))
    found = orthogonalise((u * torch.linspace(1.0, 3.0, 8) @ v.T)[None])[0]
    mixed = u.T @ found @ v
    assert (mixed.diagonal() > 0.65).all()
    torch.testing.assert_close(mixed, torch.diag(mixed.diagonal()), atol=1e-5, rtol=0)


def test_zero_gives_zero() -> None:
    assert not orthogonalise(torch.zeros(2, 4, 6)).any()


@pytest.fixture(scope="module")
def kernels(kernels_library: Path) -> Int8Kernels:
    kernels = Kernels(kernels_library)
    return kernels.int8 or Int8Kernels(load(kernels_library), kernels.lanes)


def pair(shape: tuple[int, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The same matrices with the same gradients, twice."""
    ours = [nn.Parameter(matrix) for matrix in torch.randn(shape)]
    for p in ours:
        p.grad = torch.randn(p.shape) * 1e-4
    theirs = copy.deepcopy(ours)
    for p, other in zip(ours, theirs, strict=True):
        other.grad = p.grad
    return ours, theirs


INT8_SHAPES = [
    (3, 64, 128),
    (1, 64, 256),
    (7, 64, 256),
    (2, 192, 192),
    (2, 192, 320),
    (1, 320, 192),
    (5, 320, 192),
]


@pytest.mark.parametrize("shape", INT8_SHAPES, ids=str)
def test_in_int8_singular_values_and_directions_are_nearly_the_same(
    shape: tuple[int, ...], kernels: Int8Kernels
) -> None:
    """Of one matrix by all threads, and of several with a thread each."""
    ours, theirs = pair(shape)
    for params, either in ((ours, kernels), (theirs, None)):
        for p in params:
            p.detach().zero_()
        Muon(params, lr=1.0, kernels=either).step()
    rounded, exact = torch.stack(list(ours)).detach(), torch.stack(list(theirs)).detach()
    assert not torch.equal(exact, rounded)
    assert (torch.linalg.svdvals(rounded) - torch.linalg.svdvals(exact)).abs().max() < 0.04
    assert torch.cosine_similarity(exact.flatten(1), rounded.flatten(1)).min() > 0.999


@pytest.mark.parametrize("shape", INT8_SHAPES, ids=str)
def test_in_int8_momentum_decay_and_length_are_the_same(shape: tuple[int, ...], kernels: Int8Kernels) -> None:
    """Blocks of rows included; what is small in the updates is not what int8 rounds."""
    ours, theirs = pair(shape)
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 2.0}
    blocks = {} if shape[1] < 128 else {"block_rows": shape[1] // 2}
    optimizers = [
        Muon([{"params": params, **blocks}], kernels=either, **options)
        for params, either in ((ours, kernels), (theirs, None))
    ]
    for _ in range(3):
        for p, other in zip(ours, theirs, strict=True):
            p.grad = other.grad = torch.randn(p.shape) * 1e-4
        for optimizer in optimizers:
            optimizer.step()
    for p, other in zip(ours, theirs, strict=True):
        average, exact = (o.state[q]["momentum"] for o, q in zip(optimizers, (p, other), strict=True))
        torch.testing.assert_close(average, exact, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(p, other, rtol=0, atol=1e-3)


def test_in_int8_zero_gradients_leave_the_weights_to_the_decay(kernels: Int8Kernels) -> None:
    p = nn.Parameter(torch.randn(128, 128))
    p.grad, before = torch.zeros(128, 128), p.detach().clone()
    Muon([p], lr=0.1, weight_decay=0.5, kernels=kernels).step()
    torch.testing.assert_close(p.detach(), before * 0.95)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_in_int8_what_is_not_finite_does_not_go_unnoticed(value: float, kernels: Int8Kernels) -> None:
    p = nn.Parameter(torch.randn(128, 128))
    p.grad = torch.randn(128, 128)
    p.grad[3, 5] = value
    Muon([p], kernels=kernels).step()
    assert not p.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 32, 192), (2, 200, 260), (2, 260, 200)], ids=str)
def test_small_and_odd_matrices_stay_in_float32(shape: tuple[int, ...], kernels: Int8Kernels) -> None:
    ours, theirs = pair(shape)
    Muon(ours, kernels=kernels).step()
    Muon(theirs).step()
    assert all(map(torch.equal, ours, theirs))


def reference_step(weight: Tensor, average: Tensor, grad: Tensor) -> None:
    """The update for one matrix, written as its definition reads: lr 0.1, momentum 0.9, decay 0.05."""
    average.mul_(0.9).add_(grad, alpha=0.1)
    x = 0.1 * grad + 0.9 * average
    x /= x.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    rows, cols = weight.shape
    weight.mul_(1 - 0.1 * 0.05).sub_(0.1 * max(1.0, rows / cols) ** 0.5 * x)


def test_equals_the_matrix_by_matrix_reference() -> None:
    params = matrices()
    weights = [p.detach().clone() for p in params]
    averages = [torch.zeros_like(w) for w in weights]
    optimizer = Muon(params, lr=0.1, momentum=0.9, weight_decay=0.05)
    for seed in range(3):
        give_gradients(params, seed)
        optimizer.step()
        for p, weight, average in zip(params, weights, averages, strict=True):
            assert p.grad is not None
            reference_step(weight, average, p.grad)
            torch.testing.assert_close(p.detach(), weight, atol=2e-5, rtol=1e-4)


def test_points_where_torchs_muon_does() -> None:
    ours = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    theirs = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    give_gradients(ours, 1)
    give_gradients(theirs, 1)
    Muon(ours, lr=1.0, momentum=0.95).step()
    torch.optim.Muon(theirs, lr=1.0, momentum=0.95, weight_decay=0.0).step()
    for a, b in zip(ours, theirs, strict=True):  # torch iterates in bf16
        assert nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.995
        assert (a.norm() / b.norm()).item() == pytest.approx(1.0, abs=0.03)


def test_blocks_of_rows_are_updated_as_matrices_of_their_own() -> None:
    whole = nn.Parameter(torch.randn(12, 10))
    parts = [nn.Parameter(part.clone()) for part in whole.detach().split(4)]
    fused = Muon([{"params": [whole], "block_rows": 4}], lr=0.1, weight_decay=0.1)
    apart = Muon(parts, lr=0.1, weight_decay=0.1)
    give_gradients([whole], 2)
    assert whole.grad is not None
    for part, grad in zip(parts, whole.grad.split(4), strict=True):
        part.grad = grad
    fused.step()
    apart.step()
    torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in parts]))


def test_a_restored_state_continues_bit_for_bit() -> None:
    straight = matrices()
    optimizer = Muon(straight, lr=0.1, weight_decay=0.1)
    for seed in range(2):
        give_gradients(straight, seed)
        optimizer.step()
    resumed = [nn.Parameter(p.detach().clone()) for p in straight]
    other = Muon(resumed, lr=0.7)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(2, 4):
        for params, either in ((straight, optimizer), (resumed, other)):
            give_gradients(params, seed)
            either.step()
    for a, b in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)


def test_without_gradient_nothing_moves() -> None:
    params = matrices()
    before = params[0].detach().clone()
    give_gradients(params[1:], 0)
    Muon(params, weight_decay=0.5).step()
    assert torch.equal(params[0], before)


def test_closure_gives_the_loss() -> None:
    weight = nn.Parameter(torch.randn(3, 3))

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    start = closure()
    weight.grad = None
    assert Muon([weight]).step(closure) == pytest.approx(start)
    assert weight.square().sum().item() < start


@pytest.mark.parametrize(("shape", "block_rows"), [((5,), None), ((2, 3, 4), None), ((10, 4), 3)])
def test_only_matrices_of_whole_blocks_are_taken(shape: tuple[int, ...], block_rows: int | None) -> None:
    with pytest.raises(ValueError, match="is not a matrix of blocks"):
        Muon([{"params": [nn.Parameter(torch.zeros(shape))], "block_rows": block_rows}])
