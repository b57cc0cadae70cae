"""The loss over a validation split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cpulm.events import Listener, Progress
from cpulm.execution.adaptive_threads import threads_for_model
from cpulm.model.transformer import Transformer

_LONGEST_SILENCE_SECONDS = 0.5


@dataclass(frozen=True)
class Evaluation:
    """``loss`` in nats per token over ``tokens`` predicted tokens, computed in ``seconds``."""

    loss: float
    tokens: int
    seconds: float

    def with_more(self, other: Evaluation) -> Evaluation:
        """Return the evaluation of both texts together."""
        tokens = self.tokens + other.tokens
        loss = (self.loss * self.tokens + other.loss * other.tokens) / max(1, tokens)
        return Evaluation(loss, tokens, self.seconds + other.seconds)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """Bits per UTF-8 byte of text, which is comparable across tokenizers."""
        return self.loss / math.log(2) / bytes_per_token


def evaluate(
    model: Transformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    total: int,
    *,
    emit: Listener,
    should_stop: Callable[[], bool],
) -> Evaluation | None:
    """Return the mean cross-entropy over ``batches`` of (x, y), int64 [B, T]; targets of -100 do not count.

    The model is computed in fp32 whatever it trains in, as ``cpulm evaluate`` does: the losses of runs in
    different precisions compare, and a checkpoint has one validation loss.

    Args:
        total: number of batches, for the progress display; 0: nothing is said.

    Returns:
        None if ``should_stop`` returned True.
    """
    began = said = time.perf_counter()
    total_loss, total_tokens = 0.0, 0
    was_training, device = model.training, model.head_weight.device
    model.eval()

    def loss_of(x: Tensor, y: Tensor) -> float:
        return float(model(x.to(device), targets=y.to(device)))

    try:
        with torch.inference_mode(), threads_for_model(model, result=lambda: loss_of(x, y)) as threads:
            for index, (x, y) in enumerate(threads.each(batches, "validation")):
                if should_stop():
                    return None
                count = int((y != -100).sum())
                total_loss += loss_of(x, y) * count
                total_tokens += count
                now = time.perf_counter()
                if now - said > _LONGEST_SILENCE_SECONDS:
                    said = now
                    emit(Progress(stage="validating", done=index + 1, total=total, unit="batches"))
    finally:
        model.train(was_training)
        if total:
            emit(Progress(stage="validating", done=total, total=total, unit="batches", finished=True))
    return Evaluation(total_loss / max(1, total_tokens), total_tokens, time.perf_counter() - began)
