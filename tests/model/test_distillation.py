"""The distillation loss of every head against torch's own formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpulm.model import fused, int8_head_loss, int8_linear
from cpulm.model.distillation import TeacherOutput
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import Kernels
from cpulm.native.library import load

VOCAB, WIDTH, TEACHER_WIDTH, TOKENS = 512, 64, 96, 300


def values(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def a_student() -> tuple[Tensor, Tensor, Tensor]:
    x, weight = values(TOKENS, WIDTH, seed=1), values(VOCAB, WIDTH, seed=2, scale=0.2)
    targets = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(3))
    targets[::9] = fused.IGNORED
    return x.requires_grad_(), weight.requires_grad_(), targets


def a_teacher(weight: float = 0.4, temperature: float = 1.0) -> TeacherOutput:
    rows, head = values(TOKENS, TEACHER_WIDTH, seed=4), values(VOCAB, TEACHER_WIDTH, seed=5, scale=0.2)
    return TeacherOutput(rows, head, weight, temperature)


def torchs(
    x: Tensor, weight: Tensor, targets: Tensor, teacher: TeacherOutput
) -> tuple[Tensor, Tensor, Tensor]:
    """Objective, cross-entropy and divergence, as torch's documentation of KLDivLoss has them."""
    logits, T = F.linear(x, weight), teacher.temperature
    counted = targets != fused.IGNORED
    student = F.log_softmax(logits[counted] / T, -1)
    taught = F.log_softmax(F.linear(teacher.rows, teacher.head)[counted] / T, -1)
    divergence = F.kl_div(student, taught, reduction="batchmean", log_target=True)
    cross_entropy = F.cross_entropy(logits[counted], targets[counted])
    objective = (1 - teacher.weight) * cross_entropy + teacher.weight * T**2 * divergence
    return objective, cross_entropy, divergence


@pytest.fixture
def kernels(kernels_library: Path) -> Int8Kernels:
    kernels = Kernels(kernels_library)
    return kernels.int8 or Int8Kernels(load(kernels_library), kernels.lanes)  # right on any CPU, if slow


@pytest.mark.parametrize(("weight", "temperature"), [(0.4, 1.0), (0.7, 2.0), (1.0, 1.5)])
@pytest.mark.parametrize("logits_in_chunk", [1, 1 << 21], ids=["chunks", "whole"])
def test_loss_and_gradients_are_torchs(
    weight: float, temperature: float, logits_in_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "LOGITS_IN_CHUNK", logits_in_chunk)
    x, head, targets = a_student()
    teacher = a_teacher(weight, temperature)
    found, expected = fused.distilled_head_loss(x, head, targets, teacher), torchs(x, head, targets, teacher)
    torch.testing.assert_close(tuple(found), expected)
    assert [loss.requires_grad for loss in found] == [True, False, False]
    ours = torch.autograd.grad(3.0 * found.objective, (x, head))
    torch.testing.assert_close(ours, torch.autograd.grad(3.0 * expected[0], (x, head)))
    with torch.no_grad():
        torch.testing.assert_close(tuple(fused.distilled_head_loss(x, head, targets, teacher)), expected)


@pytest.mark.parametrize(("weight", "temperature"), [(0.4, 1.0), (0.7, 2.0), (1.0, 1.5)])
@pytest.mark.parametrize("bytes_at_once", [VOCAB * 64, 1 << 26])
def test_the_int8_head_is_within_one_part_in_thirty(
    kernels: Int8Kernels,
    weight: float,
    temperature: float,
    bytes_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int8_head_loss, "INT8_PROBABILITIES_AT_ONCE", bytes_at_once)
    monkeypatch.setattr(int8_head_loss, "INT8_LOGITS_IN_CHUNK", VOCAB * 64)
    x, head, targets = a_student()
    plain = a_teacher(weight, temperature)
    quantized = int8_linear.frozen_weight(kernels, plain.head)
    teacher = replace(plain, kernels=kernels, int8_head=quantized)
    found = int8_head_loss.distilled_head_loss(kernels, x, head, targets, teacher)
    expected = torchs(x, head, targets, plain)
    torch.testing.assert_close(tuple(found), expected, rtol=2e-3, atol=0)
    pairs = zip(
        torch.autograd.grad(found.objective, (x, head)),
        torch.autograd.grad(expected[0], (x, head)),
        strict=True,
    )
    for ours, exact in pairs:
        assert float((ours - exact).norm() / exact.norm()) < 1 / 30
    again = int8_head_loss.distilled_head_loss(kernels, x, head, targets, teacher)
    assert not torch.autograd.grad(again.objective, x)[0][::9].any()


def test_a_teacher_that_says_the_same_adds_nothing(kernels: Int8Kernels) -> None:
    x, head, targets = a_student()
    teacher = TeacherOutput(x.detach(), head.detach(), 0.5, 1.0)
    alone = torch.autograd.grad(fused.head_loss(x, head, targets), x)[0]
    losses = fused.distilled_head_loss(x, head, targets, teacher)
    assert float(losses.divergence) == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(torch.autograd.grad(losses.objective, x)[0], 0.5 * alone, rtol=1e-3, atol=1e-6)


def test_the_quantized_gradient_keeps_its_mean_between_two_steps(kernels: Int8Kernels) -> None:
    """One entry is far from the teacher's, 4095 are a third of a step from it: their rounding is unbiased."""
    logits, taught = torch.zeros(200, 4096), torch.zeros(200, 4096)
    logits[:, 0] = torch.linspace(6.0, 6.02, 200)
    targets = torch.zeros(200, dtype=torch.int64)
    exact = 0.5 * torch.softmax(logits, -1) + 0.5 * (torch.softmax(logits, -1) - torch.softmax(taught, -1))
    _, (values, scale, _) = kernels.distill(logits.clone(), taught.clone(), targets, 0.5, 1.0)
    found = values * scale[:, None]
    assert float(found[:, 0].mean()) == pytest.approx(float(exact[:, 0].mean()), rel=0.01)
    assert float(found[:, 1:].sum(1).mean()) == pytest.approx(float(exact[:, 1:].sum(1).mean()), rel=0.02)
    assert len(values[:, 1:].unique()) == 2
