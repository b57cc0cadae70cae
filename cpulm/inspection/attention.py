"""Where each attention head looks from each token of a prompt."""

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
"""Numbers in all maps together: about a megabyte of JSON."""


def room(settings: ModelSettings) -> int:
    """The most tokens whose maps of all heads are few enough."""
    heads = settings.n_layer * settings.n_head
    tokens = min(MOST_TOKENS, settings.block_size)
    while tokens > 2 and heads * tokens * (tokens + 1) // 2 > MOST_NUMBERS:
        tokens -= 1
    return tokens


@torch.inference_mode()
def attention(model: Transformer, tokens: Sequence[int], texts: TokenTexts) -> AttentionMap:
    """The attention of every head over ``tokens``, of which the last ones are taken, as many as have room."""
    seen = list(tokens[-room(model.settings) :])
    with _Watch() as watch:
        model.hidden(torch.tensor([seen], device=model.wte.weight.device))
    weights = np.stack([attention_weights(*one)[0].cpu().numpy() for one in watch.seen])
    heads = [
        _in_figures(layer, head, weights[layer, head])
        for layer in range(weights.shape[0])
        for head in range(weights.shape[1])
    ]
    return AttentionMap(tokens=texts.texts(seen), weights=weights, heads=tuple(heads))


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """The weights that causal attention gives the values.

    Args:
        q: [B, H, T, D], ready to be multiplied: normed and rotated where the model does so.
        k: [B, K, T, D]; each of the K heads serves H / K query heads that lie side by side.
        mask: added to the scores [B, H, T, T], where the model was trained with one.

    Returns:
        [B, H, T, T] float32; each row sums to one, what lies behind the row's token is zero.
    """
    q, k = q.float(), k.float().repeat_interleave(q.size(1) // k.size(1), dim=1)
    scores = q @ k.mT / q.size(-1) ** 0.5
    if mask is not None:
        scores = scores + mask
    behind = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    weights: Tensor = scores.masked_fill(behind, -torch.inf).softmax(-1)
    return weights


class _Watch(TorchFunctionMode):
    """While entered, notes the queries, keys and mask of every attention as the model hands them to torch.

    So whatever is done to them on the way there (norms, rotation, groups) need not be known here.
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


def _in_figures(layer: int, head: int, weights: npt.NDArray[np.float32]) -> Head:
    """One head's map [T, T] in figures; the first token, which has no choice, counts in none of them."""
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
