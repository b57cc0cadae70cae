"""The training loop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint, TrainState
from cpulm.data.loader import Loader, val_batch_count, val_batches
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError, DivergedError, StoppedError
from cpulm.evaluation.validation_loss import Evaluation, evaluate
from cpulm.events import Listener, Notice, RolledBack, SampleMade, StepDone, Validated
from cpulm.execution.compilation import Forward, ready_forward
from cpulm.execution.rng import random_states, restore_random_states
from cpulm.execution.runtime import Runtime
from cpulm.generation.generate import sample_text
from cpulm.interrupts import StopNow, StopRequest
from cpulm.model.transformer import Transformer
from cpulm.optim.build_optimizers import set_lr_scale
from cpulm.optim.clip import clip_gradients
from cpulm.optim.schedule import lr_scale
from cpulm.run_dir import RunDir
from cpulm.settings import Settings
from cpulm.system.power import BatteryWatch
from cpulm.system.run_clock import RunClock
from cpulm.training import divergence
from cpulm.training.checkpointer import Checkpointer
from cpulm.training.horizon import Horizon
from cpulm.training.layer_stats import LayerStatistics


@dataclass
class Trainer:
    """One run: all its objects, and the loop over them. ``cpulm.training.build`` assembles it.

    ``clock`` gives the run's own time; ``battery``, where there is one, says when to wait for the mains.
    """

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
    stop: StopRequest
    clock: RunClock
    battery: BatteryWatch | None = None
    position: TrainState = field(default_factory=TrainState)

    def __post_init__(self) -> None:
        self.saver = Checkpointer(
            self.run,
            self.settings.checkpoint,
            self._checkpoint,
            self.emit,
            saved_step=self.position.step,
            saved_at=self.position.elapsed_seconds,
        )
        self.layer_stats = LayerStatistics(self.model, self.settings.log.layer_stats_every)
        self.trained_seconds = 0.0
        self.trained_tokens = 0

    def get_ready(self) -> None:
        """What a run does before its first update: a checkpoint to go back to, and the step compiled.

        Raises:
            StoppedError: where a stop is asked for meanwhile.
            ResourceError: where no checkpoint can be written.
        """
        if not self.run.checkpoints():
            self.saver.save_last()
        began = time.monotonic()
        try:
            with self.clock.pause():
                self.forward, self.runtime = ready_forward(
                    self.model, self.loader, self.runtime, self.emit, self.stop
                )
        except StopNow:
            raise StoppedError(
                f"while compiling; {self.run.path} stands at step {self.position.step}",
                f"go on with `cpulm resume {self.run.path}`",
            ) from None
        if self.horizon.seconds is not None:
            gone = time.monotonic() - began
            self.horizon = replace(self.horizon, seconds=self.horizon.seconds - gone)

    def train(self) -> str:
        """Train until the horizon, an early end or a request to stop.

        Returns:
            Why it ended: ``horizon``, ``target_loss``, ``patience`` or ``stopped``.

        Raises:
            DivergedError: on numbers that stay in trouble; what is not finite never reaches the weights.
            ResourceError: where checkpoints cannot be written any more.
        """
        self.model.train()
        reason = self._loop()
        if reason == "horizon" and self.position.validated_step != self.position.step:
            reason = self.validate() or reason
        self.saver.save_last()
        return reason

    def _loop(self) -> str:
        every = self.settings.eval.every
        while True:
            step = self.position.step
            if step and step % every == 0 and self.position.validated_step != step:
                early = self.validate()
                if early:
                    return early
            if self.battery is not None and self.battery.paused():
                self._wait_for_mains(self.battery)
            if self.stop():
                return "stopped"
            if self._progress() >= 1.0:
                return "horizon"
            trouble = self._step()
            if trouble is not None:
                self._go_back(trouble, step)
            elif self.position.step == step:
                return "stopped"
            elif self.saver.is_due(self.position.step, self.clock.elapsed()):
                self.saver.save(self.position.step, self.clock.elapsed())

    def _wait_for_mains(self, battery: BatteryWatch) -> None:
        """Save, for the battery may run out, and wait; a deadline on the wall clock ends the waiting too."""
        self.saver.save(self.position.step, self.clock.elapsed())
        battery.wait_for_mains(lambda: self.stop() or self._progress() >= 1.0, self._warn, self.clock)

    # One optimizer update

    def _step(self) -> str | None:
        """Train one update. A request to stop in the middle undoes it: the position stays.

        Returns:
            What is wrong with the numbers, or None.
        """
        began = self.clock.now()
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
            return None
        loss, data_seconds = accumulated
        self.layer_stats.before_update(position.step + 1)
        grad_norm = clip_gradients(self.model.parameters(), train.grad_clip)
        trouble = divergence.non_finite(loss, grad_norm)
        if trouble is not None:
            position.course.high_updates += 1
            return trouble
        for optimizer in self.optimizers:
            optimizer.step()
        layer_stats = self.layer_stats.after_update()
        self._forget_gradients()
        trouble = divergence.follow(position.course, loss, train.spike_nats)
        seconds = self.clock.now() - began
        position.step += 1
        position.tokens += self.settings.tokens_per_step
        position.elapsed_seconds = self.clock.elapsed()
        self.trained_seconds += seconds
        self.trained_tokens += self.settings.tokens_per_step
        self.emit(
            StepDone(
                step=position.step,
                loss=loss,
                lr=train.lr * scale,
                muon_lr=train.muon_lr * scale if train.optimizer == "muon" else None,
                grad_norm=grad_norm,
                tokens=position.tokens,
                epoch=self.loader.epoch(position.step * train.grad_accum_steps),
                elapsed_seconds=position.elapsed_seconds,
                step_seconds=seconds,
                data_seconds=data_seconds,
                progress=self._progress(),
            )
        )
        if layer_stats is not None:
            self.emit(layer_stats)
        return trouble

    def _accumulate(self) -> tuple[float, float] | None:
        """Forward and backward over the update's micro-batches: (mean loss, seconds for the batches)."""
        count = self.settings.train.grad_accum_steps
        loss_sum: Tensor | None = None
        data_seconds = 0.0
        for number, index in enumerate(self._batches_of(self.position.step), 1):
            began = time.perf_counter()
            x, y = (part.to(self.runtime.device) for part in self.loader.batch(index))
            data_seconds += time.perf_counter() - began
            with self.runtime.autocast():
                loss = self.forward(x, targets=y)
            (loss / count if count > 1 else loss).backward()
            detached = loss.detach()
            loss_sum = detached if loss_sum is None else loss_sum + detached
            if number < count and self.stop():
                self._forget_gradients()
                return None
        assert loss_sum is not None
        return float(loss_sum) / count, data_seconds

    def _batches_of(self, step: int) -> list[int]:
        """The loader's numbers of the micro-batches of the update after ``step``."""
        count = self.settings.train.grad_accum_steps
        first = step * count
        return [divergence.shifted(index, self.position.skipped) for index in range(first, first + count)]

    def _forget_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _progress(self) -> float:
        return self.horizon.progress(self.position.step, self.clock.elapsed(), time.time())

    # Trouble in the numbers

    def _go_back(self, trouble: str, last: int) -> None:
        """Go on from the last checkpoint before the trouble, without the data that did it.

        Args:
            last: the last update of the trouble is the one after this step.

        Raises:
            DivergedError: where that was done too often, or there is nothing to go back to.
        """
        position, train = self.position, self.settings.train
        self._forget_gradients()
        count, limit = position.rollbacks + 1, train.max_rollbacks
        if count > limit:
            raise self._diverged(trouble, f"after {limit} times back to a checkpoint" if limit else "")
        checkpoint = self._last_good()
        if checkpoint is None:
            raise self._diverged(trouble, "and no checkpoint from before is left")
        guilty = range(max(0, last + 1 - position.course.high_updates), last + 1)
        batches = sorted({index for step in guilty for index in self._batches_of(step)})
        before, best = position, (position.best_loss, position.best_step, position.best_bits_per_byte)
        checkpoints.restore(checkpoint, self.model, self.optimizers)
        self.position = position = checkpoint.position
        position.best_loss, position.best_step, position.best_bits_per_byte = best
        position.skipped = sorted({*before.skipped, *batches})
        position.saves = before.saves
        position.rollbacks = count
        self.emit(
            RolledBack(
                step=before.step,
                to_step=position.step,
                reason=trouble,
                skipped_batches=tuple(batches),
                count=count,
                limit=limit,
            )
        )
        self.saver.save(position.step, self.clock.elapsed())

    def _last_good(self) -> Checkpoint | None:
        """The newest whole checkpoint that was not written amid a spike."""
        for path in self.run.checkpoints():
            try:
                checkpoint = checkpoints.load(path)
            except DataError as error:
                self._warn(error.message)
                continue
            if not checkpoint.position.course.high_updates:
                return checkpoint
        return None

    def _diverged(self, trouble: str, when: str) -> DivergedError:
        kept = self.run.checkpoints()
        where = f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint is left"
        step = f"step {self.position.step + 1}{f' {when}' if when else ''}"
        return DivergedError(
            f"training diverged in {step}: {trouble}; {where}",
            "lower train.lr (and train.muon_lr), or lengthen train.warmup_steps",
        )

    def _warn(self, message: str) -> None:
        self.emit(Notice(level="warning", message=message))

    # Validation

    def validate(self) -> str | None:
        """Measure the validation loss, keep the best model, write a sample.

        Returns:
            A reason to end the run, or None.
        """
        began = self.clock.now()
        result = self._evaluate()
        if result is None:
            return None
        position = self.position
        bits_per_byte = result.bits_per_byte(self.tokens.bytes_per_token)
        best_before = (position.best_loss, position.best_step, position.best_bits_per_byte)
        best = position.best_loss is None or result.loss < position.best_loss
        position.validated_step = position.step
        position.stale_validations = 0 if best else position.stale_validations + 1
        if best:
            position.best_loss, position.best_step = result.loss, position.step
            position.best_bits_per_byte = bits_per_byte
            position.rollbacks = 0
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
        if best and not self.saver.save_best(position.step, self.clock.elapsed()):
            # The next better model is to be saved even if it is not as good as the one that was lost.
            position.best_loss, position.best_step, position.best_bits_per_byte = best_before
        self._sample()
        self._reserve(self.clock.now() - began)
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
        return evaluate(
            self.model,
            val_batches(self.tokens.val, block, size, limit),
            val_batch_count(self.tokens.val, block, size, limit),
            device=self.runtime.device,
            autocast=self.runtime.autocast,
            emit=self.emit,
            should_stop=self.stop,
        )

    def _reserve(self, validation_seconds: float) -> None:
        """Keep time for the end: one more validation with its sample, two checkpoints like the slowest."""
        if self.horizon.is_time:
            reserve = validation_seconds + 2 * self.saver.slowest_seconds
            self.horizon = replace(self.horizon, reserve_seconds=reserve)

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
            should_stop=self.stop,
        )
        self.emit(SampleMade(step=self.position.step, prompt=sample.prompt, text=text))

    def _checkpoint(self) -> Checkpoint:
        self.position.saves += 1
        return Checkpoint(
            settings=self.settings,
            tokenizer_json=self.tokenizer.to_json(),
            vocab_size=self.model.vocab_size,
            starts_documents=self.tokens.train_documents > 1,
            model_state=self.model.state_dict(),
            optimizer_states=[optimizer.state_dict() for optimizer in self.optimizers],
            position=replace(self.position, elapsed_seconds=self.clock.elapsed()),
            random_state=random_states(self.runtime.device),
            runtime=self.runtime.facts(),
            data={"path": str(self.tokens.path), "digest": self.tokens.digest},
        )
