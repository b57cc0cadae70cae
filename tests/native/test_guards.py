"""A tensor of the wrong shape is refused: a kernel would read or write beyond its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cpulm.native.int8 import Factor, Int8Kernels, MuonUpdate
from cpulm.native.kernels import AttentionShape, Kernels, QKTransform
from cpulm.native.library import load

D = 32
SHAPE = AttentionShape(2, 1, D)
NOTHING = QKTransform(None, None, None, None)


@pytest.fixture(scope="module")
def kernels(kernels_library: Path) -> Kernels:
    return Kernels(kernels_library)


@pytest.fixture(scope="module")
def int8(kernels: Kernels, kernels_library: Path) -> Int8Kernels:
    return kernels.int8 or Int8Kernels(load(kernels_library), kernels.lanes)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


WRONG: dict[str, Callable[[Kernels], object]] = {
    "rms_norm, width": lambda k: k.rms_norm(ones(2, 33), ones(33), 1e-6),
    "rms_norm, empty": lambda k: k.rms_norm(ones(2, 0), ones(0), 1e-6),
    "rms_norm, weight": lambda k: k.rms_norm(ones(2, D), ones(D - 1), 1e-6),
    "rms_norm, dtype": lambda k: k.rms_norm(ones(2, D).double(), ones(D), 1e-6),
    "rms_norm, weight's dtype": lambda k: k.rms_norm(ones(2, D), ones(D).half(), 1e-6),
    "rms_norm, layout": lambda k: k.rms_norm(ones(D, D).t(), ones(D), 1e-6),
    "rms_norm, device": lambda k: k.rms_norm(ones(2, D).to("meta"), ones(D), 1e-6),
    "rms_norm_backward": lambda k: k.rms_norm_backward(ones(1, D), ones(2, D), ones(D), ones(2)),
    "rms_norm_backward, factors": lambda k: k.rms_norm_backward(ones(2, D), ones(2, D), ones(D), ones(1)),
    "swiglu, width": lambda k: k.swiglu(ones(2, D + 2)),
    "swiglu, odd": lambda k: k.swiglu(ones(2, 2 * D + 1)),
    "swiglu, layout": lambda k: k.swiglu(ones(2, 4 * D)[:, ::2]),
    "swiglu_backward": lambda k: k.swiglu_backward(ones(2, 2 * D), ones(2, 2 * D)),
    "relu2, width": lambda k: k.relu2(ones(2, 33)),
    "relu2_backward": lambda k: k.relu2_backward(ones(1, D), ones(2, D)),
    "dropout, width": lambda k: k.dropout(ones(2, 33), 0.5, 1),
    "dropout, dtype": lambda k: k.dropout(ones(2, D).to(torch.int32), 0.5, 1),
    "attention, width": lambda k: k.attention(ones(1, 3, 3 * D), SHAPE, NOTHING, None),
    "attention, head": lambda k: k.attention(ones(1, 3, 4 * 33), replace(SHAPE, head_dim=33), NOTHING, None),
    "attention, groups": lambda k: k.attention(ones(1, 3, 7 * D), AttentionShape(3, 2, D), NOTHING, None),
    "attention, no heads": lambda k: k.attention(ones(1, 3, 2 * D), AttentionShape(2, 0, D), NOTHING, None),
    "attention, norm": lambda k: k.attention(
        ones(1, 3, 4 * D), SHAPE, QKTransform(ones(D - 1), ones(D), None, None), None
    ),
    "attention, angles": lambda k: k.attention(
        ones(1, 3, 4 * D), SHAPE, QKTransform(None, None, ones(2, D // 2), ones(2, D // 2)), None
    ),
    "attention, half of the angles": lambda k: k.attention(
        ones(1, 3, 4 * D), SHAPE, QKTransform(None, None, ones(3, D // 2), None), None
    ),
    "attention, first": lambda k: k.attention(ones(1, 3, 4 * D), SHAPE, NOTHING, torch.zeros(1, 3).long()),
    "attention_backward": lambda k: k.attention_backward(
        ones(1, 3, D), ones(1, 3, 4 * D), ones(1, 3, 2 * D), ones(1, 2, 3), SHAPE, NOTHING, None
    ),
    "attention_backward, divisors": lambda k: k.attention_backward(
        ones(1, 3, 2 * D), ones(1, 3, 4 * D), ones(1, 3, 2 * D), ones(1, 2, 2), SHAPE, NOTHING, None
    ),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_kernel_refuses_what_does_not_fit(kernels: Kernels, call: Callable[[Kernels], object]) -> None:
    with pytest.raises(ValueError, match=r"the kernels (need|take)|equal parts|not a shape"):
        call(kernels)


def update(rows: int) -> MuonUpdate:
    return MuonUpdate(rows, 0.9, 0.0, 0.1, 5, (1.0, 1.0, 1.0))


WRONG_IN_INT8: dict[str, Callable[[Int8Kernels], object]] = {
    "left, width": lambda k: k.left(ones(4, 33)),
    "left, dtype": lambda k: k.left(ones(4, D).double()),
    "product, scales": lambda k: k.product(
        Factor(torch.ones(4, D, dtype=torch.int8), ones(3)), k.right(ones(D, D))
    ),
    "product, bytes": lambda k: k.product(Factor(ones(4, D), ones(4)), k.right(ones(D, D))),
    "product, bias": lambda k: k.product(k.left(ones(4, D)), k.right(ones(D, D)), ones(D - 1)),
    "product, out": lambda k: k.product(k.left(ones(4, D)), k.right(ones(D, D)), out=torch.empty(D, 4).t()),
    "softmax, targets": lambda k: k.softmax(ones(4, D), torch.zeros(4, dtype=torch.int32)),
    "softmax, number of targets": lambda k: k.softmax(ones(4, D), torch.zeros(3, dtype=torch.int64)),
    "distill, teacher": lambda k: k.distill(
        ones(4, D), ones(4, 2 * D), torch.zeros(4, dtype=torch.int64), 0.5, 1.0
    ),
    "distill, targets": lambda k: k.distill(
        ones(4, D), ones(4, D), torch.zeros(3, dtype=torch.int64), 0.5, 1.0
    ),
    "pack_into, start": lambda k: k.pack_into(
        torch.empty(8, D, dtype=torch.int8), torch.ones(4, D, dtype=torch.int8), -4
    ),
    "muon, gradients": lambda k: k.muon([ones(D, D)], [ones(D, 2 * D)], [ones(D, D)], update(D)),
    "muon, averages": lambda k: k.muon([ones(D, D)], [ones(D, D)], [], update(D)),
    "muon, layout": lambda k: k.muon([ones(D, 2 * D).t()], [ones(2 * D, D)], [ones(2 * D, D)], update(2 * D)),
}


@pytest.mark.parametrize("call", WRONG_IN_INT8.values(), ids=WRONG_IN_INT8)
def test_an_int8_kernel_refuses_what_does_not_fit(
    int8: Int8Kernels, call: Callable[[Int8Kernels], object]
) -> None:
    with pytest.raises(ValueError, match=r"the kernels (need|take)|do not fit|averages"):
        call(int8)


def test_a_first_token_outside_of_the_window_is_taken_for_the_nearest_inside(kernels: Kernels) -> None:
    qkv = torch.randn(1, 20, 4 * D, generator=torch.Generator().manual_seed(1))
    wild = torch.full((1, 20), -7, dtype=torch.int32)
    wild[0, 10:] = 2**31 - 1
    inside = wild.clamp(min=0).minimum(torch.arange(20, dtype=torch.int32))
    found, wanted = (kernels.attention(qkv, SHAPE, NOTHING, first)[0] for first in (wild, inside))
    assert torch.equal(found, wanted)
