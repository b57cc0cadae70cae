"""The distillation loss: a student learns from the text and from a teacher's distribution.

``(1 - w) CE + w T² KL(q_T || p_T)`` for the student's distribution p, the teacher's q, both with their logits
divided by the temperature T in the divergence, and a weight w (https://arxiv.org/abs/1503.02531). T² keeps
the size of the divergence's gradient, which by the student's logits is ``w T (p_T - q_T)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cpulm.native.int8 import Factor, Int8Kernels


class DistillationLoss(NamedTuple):
    """The losses of one micro-batch, means over its tokens in nats.

    Attributes:
        objective: the distillation loss, which has the gradients.
        cross_entropy: on the text, comparable with the loss of a run without a teacher; no gradient.
        divergence: KL(q_T || p_T); no gradient.
    """

    objective: Tensor
    cross_entropy: Tensor
    divergence: Tensor


@dataclass(frozen=True)
class TeacherOutput:
    """What the student's head needs from the teacher to compute the loss of N tokens.

    The teacher's logits are computed in chunks beside the student's, and never exist as a whole.

    Attributes:
        rows: [N, D], outputs of the teacher's last norm.
        head: [V, D], the teacher's output matrix.
        weight: the part w of the divergence.
        temperature: T.
        int8_head: the transpose of ``head`` as a right factor for ``kernels``; None: the product is in fp32.
    """

    rows: Tensor
    head: Tensor
    weight: float
    temperature: float
    kernels: Int8Kernels | None = None
    int8_head: Factor | None = None

    def logits(self, some: slice) -> Tensor:
        """The teacher's float32 logits [n, V] of some of the N tokens."""
        rows = self.rows[some]
        if self.kernels is not None and self.int8_head is not None:
            return self.kernels.product(self.kernels.left(rows), self.int8_head)
        return F.linear(rows, self.head).float()

    def combined(self, cross_entropy: Tensor, divergence: Tensor) -> Tensor:
        """The distillation loss."""
        return (1 - self.weight) * cross_entropy + self.weight * self.temperature**2 * divergence


def mean_cross_entropy(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """As ``F.cross_entropy`` of logits [N, V] and targets [N], but 0 if all targets are ``ignored``."""
    total = F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum")
    return total / (targets != ignored).sum().clamp(min=1)


def distillation_loss(
    logits: Tensor, targets: Tensor, teacher: TeacherOutput, ignored: int
) -> DistillationLoss:
    """The formula in torch's functions, for logits [N, V] and targets [N]; ``ignored`` is excluded."""
    counted = targets != ignored
    cross_entropy = mean_cross_entropy(logits, targets, ignored)
    student = torch.log_softmax(logits / teacher.temperature, -1)
    taught = torch.log_softmax(teacher.logits(slice(None)) / teacher.temperature, -1)
    by_token = F.kl_div(student, taught, reduction="none", log_target=True).sum(-1)
    divergence = by_token.where(counted, 0.0).sum() / counted.sum().clamp(min=1)
    objective = teacher.combined(cross_entropy, divergence)
    return DistillationLoss(objective, cross_entropy.detach(), divergence.detach())
