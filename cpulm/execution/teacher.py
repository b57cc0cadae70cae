"""The teacher of a run: a trained model whose distribution the run's model learns from, beside the text."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cpulm.execution.runtime import Runtime
from cpulm.model import int8_linear
from cpulm.model.distillation import TeacherOutput
from cpulm.model.transformer import Transformer
from cpulm.native.int8 import Factor, Int8Kernels


@dataclass
class Teacher:
    """A frozen model with the same vocabulary as the run's model.

    Its forward pass is in the precision of the run: if that is int8, its weights are quantized once, here.

    Args:
        weight: ``train.teacher_weight``.
        temperature: ``train.teacher_temperature``.
    """

    model: Transformer
    weight: float
    temperature: float
    runtime: Runtime
    _kernels: Int8Kernels | None = field(default=None, init=False)
    _head: Factor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.model.to(self.runtime.device)
        self.runtime.equip(self.model)
        self.model.freeze()
        kernels = self.model.head_kernels
        if kernels is not None:
            self._kernels = kernels
            self._head = int8_linear.frozen_weight(kernels, self.model.head_weight)

    @torch.no_grad()
    def output(self, idx: Tensor) -> TeacherOutput:
        """Run the teacher on ``idx`` [B, T], up to its head."""
        return TeacherOutput(
            rows=self.model.hidden(idx).flatten(0, 1),
            head=self.model.head_weight,
            weight=self.weight,
            temperature=self.temperature,
            kernels=self._kernels,
            int8_head=self._head,
        )
