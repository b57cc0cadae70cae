"""Runs a model over a text, window by window: the surprise of each token and the activity of hidden units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpulm.inspection.model_report import LayerUnits
from cpulm.model.counts import LOGITS_IN_CHUNK, flops_per_token
from cpulm.model.transformer import Transformer

MOST_TOKENS = 1 << 16
"""The standard error of a mean over so many is 1/256 of the tokens' standard deviation."""
MOST_FLOPS = 1e12
"""The arithmetic that the pass may cost: some seconds on a few cores."""
LEAST_WINDOWS = 4
_TOKENS_AT_ONCE = 4096

_SMALL = 0.01
"""Fraction of a layer's root mean square below which an activation has no effect."""
_ACTIVE = 0.1
"""Fraction of a token's root mean square above which a unit counts as active."""
_EXAMPLES = 20


@dataclass(frozen=True)
class TextStatistics:
    """The model's results on the windows.

    Attributes:
        starts: [N] where each window begins in the text; its first token is context only.
        windows: [N, T + 1] their tokens, -1 after the end of the text.
        surprise: [N, T] ``-log p`` of each in nats, NaN after the end of the text.
        units: the activity of the hidden units of each layer's MLP.
    """

    starts: npt.NDArray[np.int64]
    windows: npt.NDArray[np.int64]
    surprise: npt.NDArray[np.float32]
    units: tuple[LayerUnits, ...]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """[N, T] the predicted tokens."""
        return self.windows[:, 1:]

    @property
    def loss(self) -> float:
        return float(np.nanmean(self.surprise, dtype=np.float64))

    @property
    def tokens(self) -> int:
        """The number of predicted tokens."""
        return int((self.targets >= 0).sum())


def window_starts(text_tokens: int, block_size: int, most: int) -> npt.NDArray[np.int64]:
    """Starts of adjacent windows, int64 [N]: all of them, or ``most`` spread evenly."""
    total = max(1, -(-(text_tokens - 1) // block_size))
    taken = min(total, most)
    return np.arange(taken, dtype=np.int64) * total // taken * block_size


def max_windows(model: Transformer) -> int:
    """How many windows to read: fewer for a larger model."""
    block = model.settings.block_size
    forward = flops_per_token(model.settings, model.vocab_size) / 3
    return max(LEAST_WINDOWS, int(min(MOST_TOKENS, MOST_FLOPS / forward)) // block)


@torch.inference_mode()
def read(
    model: Transformer,
    tokens: npt.NDArray[Any],
    starts: npt.NDArray[np.int64],
    advance: Callable[[int], None],
) -> TextStatistics:
    """Run the model over the windows of ``tokens`` that begin at ``starts``.

    Args:
        tokens: the text, 1-D, usually a memory map; at least two.
        advance: called with the number of windows read.
    """
    block = model.settings.block_size
    windows = np.full((len(starts), block + 1), -1, dtype=np.int64)
    surprise = np.full((len(starts), block), np.nan, dtype=np.float32)
    device = model.wte.weight.device
    at_once = max(1, _TOKENS_AT_ONCE // block)
    with UnitRecorder(model) as watch:
        for first in range(0, len(starts), at_once):
            rows = [
                np.asarray(tokens[at : at + block + 1], dtype=np.int64) for at in starts[first:][:at_once]
            ]
            # Only the window at the end of the text can be shorter: it is read separately.
            for length in dict.fromkeys(map(len, rows)):
                alike = [number for number, row in enumerate(rows) if len(row) == length]
                batch = torch.from_numpy(np.stack([rows[number] for number in alike])).to(device)
                losses = surprises(model, batch)
                for number, loss in zip(alike, losses.cpu().numpy(), strict=True):
                    windows[first + number, :length] = rows[number]
                    surprise[first + number, : length - 1] = loss
            advance(len(rows))
    return TextStatistics(starts, windows, surprise, watch.found())


def surprises(model: Transformer, windows: Tensor) -> Tensor:
    """``-log p`` of each token but the first of ``windows`` [B, T + 1]: float32 [B, T], in nats."""
    hidden = model.hidden(windows[:, :-1])
    rows, wanted = hidden.flatten(0, 1), windows[:, 1:].flatten()
    at_once = max(1, LOGITS_IN_CHUNK // model.vocab_size)
    losses = [
        F.cross_entropy(F.linear(some, model.head_weight).float(), targets, reduction="none")
        for some, targets in zip(rows.split(at_once), wanted.split(at_once), strict=True)
    ]
    return torch.cat(losses).view(windows.size(0), -1)


class UnitRecorder:
    """While entered, records every hidden unit of the MLPs: the input of ``down``."""

    def __init__(self, model: Transformer) -> None:
        self._downs: list[nn.Module] = [block.get_submodule("mlp.down") for block in model.blocks]
        self._layers: list[_Activations | None] = [None] * len(self._downs)
        self._handles: list[Any] = []

    def __enter__(self) -> UnitRecorder:
        for layer, down in enumerate(self._downs):
            self._handles.append(down.register_forward_pre_hook(self._hook(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def found(self) -> tuple[LayerUnits, ...]:
        """The activity of each layer's units so far."""
        return tuple(layer.summary(number) for number, layer in enumerate(self._layers) if layer is not None)

    def _hook(self, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            activations = inputs[0].detach().flatten(0, -2).float()
            seen = self._layers[layer]
            if seen is None:
                seen = self._layers[layer] = _Activations(activations)
            seen.add(activations)

        return see


class _Activations:
    """Running statistics of the units of one layer, each [units]; all but the largest are float64."""

    def __init__(self, like: Tensor) -> None:
        self.tokens = 0
        self.largest = like.new_zeros(like.size(-1))
        self.total = like.new_zeros(like.size(-1), dtype=torch.float64)
        self.squares = torch.zeros_like(self.total)
        self.active = torch.zeros_like(self.total)

    def add(self, activations: Tensor) -> None:
        """Count ``activations`` [tokens, units]."""
        squares = activations.square()
        self.tokens += activations.size(0)
        self.largest = torch.maximum(self.largest, squares.amax(0).sqrt())
        self.total += activations.sum(0)
        self.squares += squares.sum(0)
        self.active += (squares > _ACTIVE**2 * squares.mean(-1, keepdim=True)).sum(0)

    def summary(self, layer: int) -> LayerUnits:
        small = _SMALL * float((self.squares / self.tokens).mean().sqrt())
        mean = self.total / self.tokens
        deviation = (self.squares / self.tokens - mean.square()).clamp(min=0).sqrt()
        never = self.largest <= small
        constant = ~never & (deviation <= small)
        return LayerUnits(
            layer=layer,
            units=never.numel(),
            never_active=int(never.sum()),
            constant=int(constant.sum()),
            active_share=float(self.active.mean() / self.tokens),
            examples=tuple((never | constant).nonzero().flatten()[:_EXAMPLES].tolist()),
        )
