"""Scores each token: its loss, and whether it was the likeliest token."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cpulm.data.loader import IGNORED
from cpulm.execution.runtime import Runtime
from cpulm.model.counts import LOGITS_IN_CHUNK
from cpulm.model.transformer import Transformer

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]

TOKENS_PER_BATCH = 4096
"""Rows of one forward pass."""


@torch.inference_mode()
def score(model: Transformer, inputs: Tensor, targets: Tensor, runtime: Runtime) -> tuple[Floats, Bools]:
    """Return the loss of every target and whether it was the likeliest token.

    The head and the loss are computed for the targets that count, a few rows at a time: the logits of a
    whole batch are never held.

    Args:
        model: in eval mode.
        inputs: int64 [B, T].
        targets: int64 [B, T]; -100 does not count.

    Returns:
        Losses in nats, float64 [N], and hits, bool [N], of the targets that count, in row-major order.
    """
    inputs, targets = inputs.to(runtime.device), targets.to(runtime.device)
    counts = targets != IGNORED
    wanted = targets[counts]
    weight = model.head_weight
    rows = max(64, LOGITS_IN_CHUNK // weight.size(0))
    losses, hits = [], []
    with runtime.autocast():
        x = model.hidden(inputs)[counts]
        for some, ids in zip(x.split(rows), wanted.split(rows), strict=True):
            logits = F.linear(some, weight).float()
            hits.append(logits.argmax(-1) == ids)
            losses.append(F.nll_loss(logits.log_softmax(-1), ids, reduction="none"))
    return torch.cat(losses).double().cpu().numpy(), torch.cat(hits).cpu().numpy()
