"""Validates during a run: measures the loss, keeps the best model, writes a sample, ends the run early."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import compress, islice

import torch

from cpulm.checkpoints.train_state import TrainState
from cpulm.data.batches import ValidationBatches
from cpulm.data.records.chat import end_ids
from cpulm.data.tokenfile import TokenFolder
from cpulm.distributed.world import SOLO, World
from cpulm.estimate.validation_schedule import compared_every
from cpulm.evaluation.validation_loss import Evaluation, evaluate
from cpulm.events import EndReason, Listener, SampleMade, Validated
from cpulm.generation.chat import sample_question
from cpulm.generation.generate import sample_text
from cpulm.generation.prompt import encode_prompt
from cpulm.model.transformer import Transformer
from cpulm.optim.weight_average import WeightAverage
from cpulm.settings import Settings
from cpulm.training.overfitting_watch import OverfittingWatch


@dataclass(frozen=True)
class _Found:
    """The evaluation of the better weights.

    ``difference`` is by how much the loss of the averaged weights is above that of the trained ones; None: no
    average is kept.
    """

    result: Evaluation
    difference: float | None = None

    @property
    def is_average(self) -> bool:
        return self.difference is not None and self.difference < 0

    @property
    def trained_loss(self) -> float | None:
        return None if self.difference is None else self.result.loss - min(0.0, self.difference)

    @property
    def averaged_loss(self) -> float | None:
        return None if self.difference is None else self.result.loss + max(0.0, self.difference)


@dataclass
class Validator:
    """Validates ``model`` on the validation split of ``tokens``.

    Attributes:
        save_best: writes ``best.pt`` and returns whether that succeeded.
        average: of the model's weights; the better of both counts, by a part of the split.
        world: the processes that share a validation. The main one writes: its success counts.
    """

    settings: Settings
    model: Transformer
    tokens: TokenFolder
    emit: Listener
    should_stop: Callable[[], bool]
    save_best: Callable[[], bool]
    average: WeightAverage | None = None
    world: World = SOLO
    overfitting: OverfittingWatch = field(init=False)
    batches: ValidationBatches = field(init=False)

    def __post_init__(self) -> None:
        self.batches = ValidationBatches(self.settings, self.tokens)
        self.overfitting = OverfittingWatch(
            self.emit, len(self.tokens.train), self.settings.train.generations
        )

    @property
    def batch_count(self) -> int:
        """Micro-batches in one validation."""
        return len(self.batches)

    def validate(self, state: TrainState) -> EndReason | None:
        """Validate, and update ``state`` with the result.

        Returns:
            The reason to end the run; None to continue, or if ``should_stop`` ended the validation.
        """
        found = self._evaluate_better()
        if found is None:
            return None
        state.average_is_better = found.is_average
        self._note(found, state)
        with self._weights(found.is_average):
            self._sample(state.step)
        return self.reason_to_end(state, found.result.loss)

    def reason_to_end(self, state: TrainState, loss: float | None) -> EndReason | None:
        """The reason to end the run after a validation with ``loss``; None: a loss that is not the best."""
        train = self.settings.train
        if train.target_loss is not None and loss is not None and loss <= train.target_loss:
            return "target_loss"
        if train.stale_validations is not None and state.stale_validations >= train.stale_validations:
            return "patience"
        return None

    def _weights(self, averaged: bool) -> AbstractContextManager[None]:
        return self.average.in_model() if self.average is not None and averaged else nullcontext()

    def _evaluate_better(self) -> _Found | None:
        """Evaluate the better of the trained and the averaged weights; None if a stop is requested."""
        trained = self._evaluate(compared=True)
        if trained is None or self.average is None:
            return None if trained is None else _Found(trained)
        with self._weights(averaged=True):
            averaged = self._evaluate(compared=True)
        if averaged is None:
            return None
        difference = averaged.loss - trained.loss
        better, worse = (averaged, trained) if difference < 0 else (trained, averaged)
        with self._weights(averaged=difference < 0):
            rest = self._evaluate(compared=False)
        if rest is None:
            return None
        result = better.with_more(rest)
        result = replace(result, seconds=result.seconds + worse.seconds)
        return _Found(result, difference)

    def _evaluate(self, *, compared: bool) -> Evaluation | None:
        """Evaluate the model; the processes take turns at the batches, and add up what they found.

        Args:
            compared: evaluate the batches on which weights are compared; else the others.
        """
        world = self.world
        every = 1 if self.average is None else compared_every(self.settings, self.batch_count)
        mine = range(world.rank, self.batch_count, world.size)
        chosen = [(number % every == 0) == compared for number in range(len(mine))]
        found = evaluate(
            self.model,
            compress(islice(self.batches, world.rank, None, world.size), chosen),
            sum(chosen),
            emit=self.emit,
            should_stop=self.should_stop,
        )
        if world.size == 1:
            return found
        own = (0.0, 0.0, 1.0) if found is None else (found.loss * found.tokens, found.tokens, 0.0)
        sums = torch.tensor(own, dtype=torch.float64)
        world.sum(sums)
        loss, tokens, stops = sums.tolist()
        if stops or found is None:
            return None
        return replace(found, loss=loss / max(1.0, tokens), tokens=int(tokens))

    def _note(self, found: _Found, state: TrainState) -> None:
        result = found.result
        best_before = (state.best_loss, state.best_step, state.best_bits_per_byte)
        bits_per_byte = result.bits_per_byte(self.tokens.bytes_per_token)
        best = state.best_loss is None or result.loss < state.best_loss
        better = state.generation_best_loss is None or result.loss < state.generation_best_loss
        state.validated_step = state.step
        state.stale_validations = 0 if better else state.stale_validations + 1
        if better:
            state.generation_best_loss, state.generation_best_step = result.loss, state.step
            state.rollbacks = 0
        if best:
            state.best_loss, state.best_step = result.loss, state.step
            state.best_bits_per_byte = bits_per_byte
        self.emit(
            Validated(
                step=state.step,
                generation=state.generation,
                loss=result.loss,
                perplexity=result.perplexity,
                bits_per_byte=bits_per_byte,
                tokens=result.tokens,
                seconds=result.seconds,
                whole=self.batches.whole,
                best=best,
                text_lost=self.tokens.lost_share,
                trained_loss=found.trained_loss,
                averaged_loss=found.averaged_loss,
            )
        )
        self.overfitting.validated(state, result.loss)
        if best and not self.world.share(self.save_best()):
            # best.pt was not written, so the next model that beats the one on disk must be saved.
            state.best_loss, state.best_step, state.best_bits_per_byte = best_before

    def _sample(self, step: int) -> None:
        sample = self.settings.sample
        if not sample.max_new_tokens or not self.world.is_main:
            return
        tokenizer = self.tokens.tokenizer
        prompt, ends = sample.prompt, None
        if self.settings.data.chat:
            prompt, ids = sample_question(self.tokens, prompt)
            ends = end_ids(tokenizer)
        else:
            starts, records = self.tokens.train_documents > 1, self.settings.train.records
            ids = encode_prompt(tokenizer, prompt, starts_documents=starts, begins_records=records)
        text = sample_text(
            self.model,
            tokenizer,
            ids,
            max_new_tokens=sample.max_new_tokens,
            temperature=sample.temperature,
            top_k=sample.top_k,
            seed=self.settings.train.seed,
            end_ids=ends,
            should_stop=self.should_stop,
        )
        self.emit(SampleMade(step=step, prompt=prompt, text=text))
