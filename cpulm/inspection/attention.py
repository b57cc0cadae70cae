"""Attention maps: the weight that each head gives each earlier token of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cpulm.inspection.model_report import AttentionMap, Head
from cpulm.inspection.tokens import TokenTexts
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings

MOST_TOKENS = 64
MOST_NUMBERS = 200_000
"""Maximum number of weights in all maps: about a megabyte of JSON."""


def max_tokens_shown(settings: ModelSettings) -> int:
    """The maximum number of tokens for which the maps of all heads fit into :data:`MOST_NUMBERS`."""
    heads = settings.n_layer * settings.n_head
    tokens = min(MOST_TOKENS, settings.block_size)
    while tokens > 2 and heads * tokens * (tokens + 1) // 2 > MOST_NUMBERS:
        tokens -= 1
    return tokens


@torch.inference_mode()
def attention(model: Transformer, tokens: Sequence[int], texts: TokenTexts) -> AttentionMap:
    """The attention of every head over ``tokens``, or over as many of the last ones as fit."""
    seen = list(tokens[-max_tokens_shown(model.settings) :])
    with _AttentionRecorder() as watch:
        model.hidden(torch.tensor([seen], device=model.wte.weight.device))
    weights = np.stack([attention_weights(*one)[0].cpu().numpy() for one in watch.seen])
    heads = [
        _head_statistics(layer, head, weights[layer, head])
        for layer in range(weights.shape[0])
        for head in range(weights.shape[1])
    ]
    return AttentionMap(tokens=texts.texts(seen), weights=weights, heads=tuple(heads))


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the weights that causal attention gives the values.

    Args:
        q: [B, H, T, D], ready for the product: after norm and rotation, if the model has them.
        k: [B, K, T, D]; each of the K heads serves H / K query heads that are adjacent.
        mask: added to the scores [B, H, T, T], if the model was trained with one.

    Returns:
        [B, H, T, T] float32; each row sums to one; entries after the row's token are zero.
    """
    q, k = q.float(), k.float().repeat_interleave(q.size(1) // k.size(1), dim=1)
    scores = q @ k.mT / q.size(-1) ** 0.5
    if mask is not None:
        scores = scores + mask
    behind = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    weights: Tensor = scores.masked_fill(behind, -torch.inf).softmax(-1)
    return weights


class _AttentionRecorder(TorchFunctionMode):
    """While entered, records the queries, keys and mask of every attention as the model passes them to torch.

    So this module need not know what happens to them before (norms, rotation, groups).
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen.append((args[0], args[1], (kwargs or {}).get("attn_mask")))
        return func(*args, **(kwargs or {}))


def _head_statistics(layer: int, head: int, weights: npt.NDArray[np.float32]) -> Head:
    """Figures of one head's map [T, T]; the first token, which has no choice, does not count."""
    count = len(weights)
    rows = weights[1:].astype(np.float64) if count > 1 else weights.astype(np.float64)
    at = np.arange(count - len(rows), count)
    back = np.maximum(at[:, None] - np.arange(count)[None, :], 0)
    logs = np.log(np.where(rows > 0, rows, 1.0))
    return Head(
        layer=layer,
        head=head,
        entropy=float(-(rows * logs).sum(1).mean()),
        distance=float((rows * back).sum(1).mean()),
        to_self=float(rows[np.arange(len(rows)), at].mean()),
        to_previous=float(rows[np.arange(len(rows)), np.maximum(at - 1, 0)].mean()),
        to_first=float(weights[2:, 0].mean()) if count > 2 else float(rows[:, 0].mean()),
    )
