"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cpulm.data.loader import Loader, val_batches
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.engine import checkpoint as checkpoints
from cpulm.engine.checkpoint import Checkpoint, Position
from cpulm.engine.compilation import Forward
from cpulm.engine.evaluate import Evaluation, evaluate
from cpulm.engine.generate import sample_text
from cpulm.engine.randomness import random_states, restore_random_states
from cpulm.engine.runtime import Runtime
from cpulm.errors import DivergedError
from cpulm.events import CheckpointSaved, Listener, SampleMade, StepDone, Validated
from cpulm.model.transformer import Transformer
from cpulm.optim.build import set_lr_scale
from cpulm.optim.schedule import lr_scale
from cpulm.rundir import RunDir
from cpulm.settings import Settings


@dataclass(frozen=True)
class Horizon:
    """Where a run ends: after ``steps`` updates, or after ``seconds`` of its own time.

    ``reserve_seconds`` of the time are kept for the last validation and the last checkpoint.
    """

    steps: int | None = None
    seconds: float | None = None
    reserve_seconds: float = 0.0

    def progress(self, step: int, elapsed_seconds: float) -> float:
        """The part of the run that is done, in [0, 1]."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, elapsed_seconds / max(self.seconds - self.reserve_seconds, 1e-9))

    def warmup_steps(self, asked: int) -> int:
        """Warm-up takes at most a tenth of a horizon given in steps."""
        return asked if self.steps is None else min(asked, self.steps // 10)


@dataclass
class Trainer:
    """One run: all its objects, and the loop over them. ``cpulm.engine.build`` assembles it."""

    settings: Settings
    run: RunDir
    model: Transformer
    forward: Forward
    optimizers: list[torch.optim.Optimizer]
    loader: Loader
    tokens: TokenFolder
    tokenizer: Tokenizer
    runtime: Runtime
    horizon: Horizon
    emit: Listener
    should_stop: Callable[[], bool]
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self._began = time.monotonic() - self.position.elapsed_seconds
        self._saved_at = self.position.elapsed_seconds
        self._saved_step = self.position.step
        self._slowest_save_seconds = 0.0
        self.trained_seconds = 0.0
        self.trained_tokens = 0

    def train(self) -> str:
        """Train until the horizon, an early end or a request to stop.

        Returns:
            Why it ended: ``horizon``, ``target_loss``, ``patience`` or ``stopped``.

        Raises:
            DivergedError: on a non-finite loss or gradient, before it reaches the weights.
        """
        self.model.train()
        reason = self._loop()
        if reason == "horizon" and self.position.validated_step != self.position.step:
            reason = self.validate() or reason
        self.save(self.run.latest)
        return reason

    def _loop(self) -> str:
        every = self.settings.eval.every
        while True:
            step = self.position.step
            if step and step % every == 0 and self.position.validated_step != step:
                early = self.validate()
                if early:
                    return early
            if self.should_stop():
                return "stopped"
            if self._progress() >= 1.0:
                return "horizon"
            if not self._step():
                return "stopped"
            if self._checkpoint_is_due():
                self.save_numbered()

    # One optimizer update

    def _step(self) -> bool:
        """Train one update; False where a request to stop came in the middle, which undoes it."""
        began = time.perf_counter()
        train, position = self.settings.train, self.position
        progress = self._progress()
        warmup_steps = self.horizon.warmup_steps(train.warmup_steps)
        scale = lr_scale(
            train.schedule, position.step, progress, warmup_steps, train.decay_fraction, train.min_lr_ratio
        )
        set_lr_scale(self.optimizers, scale)
        random_state = random_states(self.runtime.device)
        accumulated = self._accumulate()
        if accumulated is None:
            restore_random_states(random_state)
            return False
        loss, data_seconds = accumulated
        grad_norm = self._clip()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise self._diverged(loss, grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        position.step += 1
        position.tokens += self.settings.tokens_per_step
        position.elapsed_seconds = time.monotonic() - self._began
        self.trained_seconds += seconds
        self.trained_tokens += self.settings.tokens_per_step
        self.emit(
            StepDone(
                step=position.step,
                loss=loss,
                lr=train.lr * scale,
                grad_norm=grad_norm,
                tokens=position.tokens,
                epoch=self.loader.epoch(position.step * train.grad_accum_steps),
                elapsed_seconds=position.elapsed_seconds,
                step_seconds=seconds,
                data_seconds=data_seconds,
                progress=self._progress(),
            )
        )
        return True

    def _accumulate(self) -> tuple[float, float] | None:
        """Forward and backward over the update's micro-batches: (mean loss, seconds for the batches)."""
        count = self.settings.train.grad_accum_steps
        first = self.position.step * count
        loss_sum: Tensor | None = None
        data_seconds = 0.0
        for index in range(first, first + count):
            began = time.perf_counter()
            x, y = (part.to(self.runtime.device) for part in self.loader.batch(index))
            data_seconds += time.perf_counter() - began
            with self.runtime.autocast():
                loss = self.forward(x, targets=y)
            (loss / count if count > 1 else loss).backward()
            detached = loss.detach()
            loss_sum = detached if loss_sum is None else loss_sum + detached
            if index + 1 < first + count and self.should_stop():
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                return None
        assert loss_sum is not None
        return float(loss_sum) / count, data_seconds

    def _clip(self) -> float:
        """Clip the whole gradient; return its norm before that."""
        limit = self.settings.train.grad_clip or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))

    def _diverged(self, loss: float, grad_norm: float) -> DivergedError:
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {grad_norm}"
        kept = self.run.checkpoints()
        where = f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint had been written yet"
        return DivergedError(
            f"training diverged in step {self.position.step + 1}: the {what}; {where}",
            "lower train.lr (and train.muon_lr), or lengthen train.warmup_steps",
        )

    def _progress(self) -> float:
        return self.horizon.progress(self.position.step, time.monotonic() - self._began)

    # Validation

    def validate(self) -> str | None:
        """Measure the validation loss, keep the best model, write a sample.

        Returns:
            A reason to end the run, or None.
        """
        result = self._evaluate()
        if result is None:
            return None
        position = self.position
        bits_per_byte = result.bits_per_byte(self.tokens.bytes_per_token)
        best = position.best_loss is None or result.loss < position.best_loss
        position.validated_step = position.step
        position.stale_validations = 0 if best else position.stale_validations + 1
        if best:
            position.best_loss, position.best_step = result.loss, position.step
            position.best_bits_per_byte = bits_per_byte
        self._reserve(result.seconds)
        self.emit(
            Validated(
                step=position.step,
                loss=result.loss,
                perplexity=result.perplexity,
                bits_per_byte=bits_per_byte,
                tokens=result.tokens,
                seconds=result.seconds,
                whole=self.settings.eval.batches is None,
                best=best,
            )
        )
        if best:
            self.save(self.run.best, role="best")
        self._sample()
        train = self.settings.train
        if train.target_loss is not None and result.loss <= train.target_loss:
            return "target_loss"
        if train.patience is not None and position.stale_validations >= train.patience:
            return "patience"
        return None

    def _evaluate(self) -> Evaluation | None:
        settings = self.settings
        size, block = settings.train.micro_batch_size, settings.model.block_size
        limit = settings.eval.batches
        windows = math.ceil((len(self.tokens.val) - 1) / block)
        total = math.ceil(windows / size)
        return evaluate(
            self.model,
            val_batches(self.tokens.val, block, size, limit),
            min(total, limit or total),
            device=self.runtime.device,
            autocast=self.runtime.autocast,
            emit=self.emit,
            should_stop=self.should_stop,
        )

    def _reserve(self, validation_seconds: float) -> None:
        """Keep time for the end: one more validation and two checkpoints like the slowest so far."""
        if self.horizon.seconds is not None:
            reserve = validation_seconds + 2 * self._slowest_save_seconds
            self.horizon = Horizon(seconds=self.horizon.seconds, reserve_seconds=reserve)

    def _sample(self) -> None:
        sample = self.settings.sample
        if not sample.max_new_tokens:
            return
        text = sample_text(
            self.model,
            self.tokenizer,
            sample.prompt,
            max_new_tokens=sample.max_new_tokens,
            temperature=sample.temperature,
            top_k=sample.top_k,
            seed=self.settings.train.seed,
            starts_documents=self.tokens.train_documents > 1,
        )
        self.emit(SampleMade(step=self.position.step, prompt=sample.prompt, text=text))

    # Checkpoints

    def _checkpoint_is_due(self) -> bool:
        every_steps = self.settings.checkpoint.every_steps
        if every_steps and self.position.step % every_steps == 0:
            return True
        return self.position.elapsed_seconds - self._saved_at >= self.settings.checkpoint.every

    def save_numbered(self) -> None:
        """Write ``latest.pt`` and the step's numbered checkpoint, and let the oldest ones go."""
        self.save(self.run.latest)
        keep = self.settings.checkpoint.keep
        if keep:
            checkpoints.duplicate(self.run.latest, self.run.numbered(self.position.step))
        for step in self.run.numbered_steps()[: -keep or None]:
            self.run.numbered(step).unlink(missing_ok=True)

    def save(self, path: Any, role: str = "latest") -> None:
        """Write a checkpoint of the run as it stands."""
        began = time.perf_counter()
        self.position.elapsed_seconds = time.monotonic() - self._began
        size = checkpoints.save(self._checkpoint(), path)
        seconds = time.perf_counter() - began
        self._slowest_save_seconds = max(self._slowest_save_seconds, seconds)
        if role == "latest":
            self._saved_at, self._saved_step = self.position.elapsed_seconds, self.position.step
        self.emit(
            CheckpointSaved(step=self.position.step, path=str(path), role=role, bytes=size, seconds=seconds)
        )

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            settings=self.settings,
            tokenizer_json=self.tokenizer.to_json(),
            vocab_size=self.model.vocab_size,
            starts_documents=self.tokens.train_documents > 1,
            model_state=self.model.state_dict(),
            optimizer_states=[optimizer.state_dict() for optimizer in self.optimizers],
            position=self.position,
            random_state=random_states(self.runtime.device),
            runtime=self.runtime.facts(),
            data={"path": str(self.tokens.path), "digest": self.tokens.digest},
        )
