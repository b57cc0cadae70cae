"""The hand-written passes: the plain formula's values and, in float64, its exact gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpulm.model import fused


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tables(tokens: int, half: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(tokens, dtype=torch.float64), 0.3 ** torch.arange(half))
    return angles.cos(), angles.sin()


def plain_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), targets, ignore_index=-100)


def test_rms_norm_value_and_gradients() -> None:
    x, weight = random(2, 2, 3, 8), random(8)
    torch.testing.assert_close(fused.rms_norm(x, weight, 1e-2), F.rms_norm(x, (8,), weight, 1e-2))
    assert torch.autograd.gradcheck(lambda x, w: fused.rms_norm(x, w, 1e-2), (x, weight))
    strided = random(1, 2, 4, 8)  # as queries lie in the fused projection
    assert torch.autograd.gradcheck(lambda x, w: fused.rms_norm(x[:, :, 1:3], w, 1e-2), (strided, weight))


def test_rms_norm_of_zeros_is_zero_with_finite_gradients() -> None:
    x, weight = torch.zeros(3, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    y = fused.rms_norm(x, weight, 1e-6)
    y.sum().backward()
    assert not y.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_rotation_turns_pairs_by_their_position() -> None:
    cos, sin = tables(5, 2)
    x = random(2, 5, 3, 4)
    turned = fused.rotate(x, cos, sin)
    pairs = torch.complex(x[..., :2], x[..., 2:]) * torch.complex(cos, sin)[:, None]
    torch.testing.assert_close(turned, torch.cat((pairs.real, pairs.imag), dim=-1))
    assert torch.autograd.gradcheck(lambda x: fused.rotate(x, cos, sin), (x,))


def test_swiglu_value_and_gradients() -> None:
    x = random(4, 5, 12)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(fused.swiglu(x), F.silu(gate) * up)
    assert torch.autograd.gradcheck(fused.swiglu, (x,))


@pytest.mark.parametrize("ignored", [[], [0, 3, 69], list(range(64, 70))], ids=["none", "some", "a-chunk"])
def test_head_loss_in_chunks_is_the_plain_loss(ignored: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "LOGITS_IN_CHUNK", 1)  # the smallest chunks: 64 rows, then 6
    x, weight, targets = random(70, 4), random(9, 4), torch.randint(9, (70,))
    targets[ignored] = -100
    loss = fused.head_loss(x, weight, targets)
    expected = plain_loss(x, weight, targets)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(3.0 * loss, (x, weight))
    theirs = torch.autograd.grad(3.0 * expected, (x, weight))
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(fused.head_loss(x, weight, targets), expected)


def test_head_loss_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "LOGITS_IN_CHUNK", 1)
    x, weight, targets = random(66, 2), random(3, 2), torch.randint(3, (66,))
    targets[65] = -100
    assert torch.autograd.gradcheck(lambda x, w: fused.head_loss(x, w, targets), (x, weight), fast_mode=True)


@torch.inference_mode()
def test_forward_in_inference_mode_is_the_plain_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, (cos, sin) = torch.randn(2, 5, 3, 8), torch.randn(8), tables(5, 4)
    cos, sin, targets = cos.float(), sin.float(), torch.randint(8, (30,))

    def everything() -> list[Tensor]:
        y = fused.rotate(fused.rms_norm(x, weight, 1e-6), cos, sin)
        return [y, fused.swiglu(y), fused.head_loss(y.flatten(0, 2), torch.ones(8, 8), targets)]

    monkeypatch.setattr(fused, "FEW_NUMBERS", 0)
    by_hand = everything()
    monkeypatch.setattr(fused, "can_fuse", lambda _: False)
    torch.testing.assert_close(by_hand, everything())
