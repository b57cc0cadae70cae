"""The training loop."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace

import torch

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.train_state import TrainState
from cpulm.command import typed
from cpulm.data.tokenfile import TokenFolder
from cpulm.distributed.rounds import OwnRows
from cpulm.distributed.world import SOLO, Agreement, World
from cpulm.errors import LostPeerError, StoppedError
from cpulm.estimate.validation_schedule import validation_schedule
from cpulm.events import EndReason, Listener, Notice, StepDone
from cpulm.execution.adaptive_threads import adaptive_threads
from cpulm.execution.compilation import compile_forward
from cpulm.execution.rng import random_states, restore_random_states
from cpulm.execution.runtime import Runtime
from cpulm.execution.update import StepTimer, TrainingParts, UpdateResult, training_update
from cpulm.interrupts import StopNow, StopRequest
from cpulm.optim.build_optimizers import set_lr_scale
from cpulm.optim.outer import OuterStep
from cpulm.optim.schedule import lr_scale
from cpulm.run_dir import RunDir
from cpulm.settings import Settings
from cpulm.system.power import BatteryWatch
from cpulm.system.run_clock import RunClock
from cpulm.training.adapter_folder import save_adapters
from cpulm.training.checkpointer import Checkpointer
from cpulm.training.divergence import roll_back, update_batches
from cpulm.training.horizon import Horizon
from cpulm.training.layer_stats import LayerStatistics
from cpulm.training.low_traffic import OwnStates, Rounds
from cpulm.training.validator import Validator


@dataclass
class Trainer:
    """The objects of a run and its training loop. ``cpulm.training.build`` builds it.

    A run of several generations is as many trainings with one trainer, see :mod:`cpulm.training.generations`.

    Attributes:
        clock: counts the run time.
        world: the processes that share every update, which take every decision together.
        own_states: keeps the optimizers' states of this process; None: the checkpoint has them.
        complete: whether the run had come to its end before, and now continues beyond it.
        battery: tells when to wait for mains power; None if the run never waits.
        trained_seconds: time in the updates of this process; ``trained_tokens`` are their tokens.
    """

    settings: Settings
    run: RunDir
    parts: TrainingParts
    tokens: TokenFolder
    runtime: Runtime
    horizon: Horizon
    emit: Listener
    stop: StopRequest
    clock: RunClock
    battery: BatteryWatch | None = None
    state: TrainState = field(default_factory=TrainState)
    complete: bool = False
    world: World = SOLO
    own_states: OwnStates | None = None
    trained_seconds: float = field(default=0.0, init=False)
    trained_tokens: int = field(default=0, init=False)
    last_seconds: float = field(default=0.0, init=False)
    rounds: Rounds = field(default_factory=Rounds, init=False)
    _agreement: Agreement | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.checkpointer = Checkpointer(
            self.run,
            self.settings.checkpoint,
            self._checkpoint,
            self.emit,
            saved_step=self.state.step,
            saved_at=self.state.elapsed_seconds,
            writes=self.world.is_main,
        )
        self.rounds = self._rounds()
        self.validator = Validator(
            self.settings,
            self.parts.model,
            self.tokens,
            self.emit,
            self.stop,
            self._save_best,
            self.parts.average,
            self.world,
        )
        self.validations = validation_schedule(
            self.settings, len(self.tokens.train), self.validator.batch_count
        )
        self.layer_stats = LayerStatistics(self.parts.model, self.settings.log.layer_stats_every)

    def _rounds(self) -> Rounds:
        rows, outer = self.parts.exchange, self.parts.optimizers[-1]
        if not isinstance(rows, OwnRows) or not isinstance(outer, OuterStep):
            return Rounds()
        return Rounds(self.world, self.settings.train.outer_steps, self.horizon.generation_steps, outer, rows)

    def _keep_own(self) -> None:
        if self.own_states is not None:
            self.own_states.keep(self._checkpoint)

    def begin_generation(self, parts: TrainingParts, state: TrainState) -> None:
        """Begin another training in the same run, with new weights."""
        self.parts, self.state, self.complete = parts, state, False
        self.horizon = self.horizon.of_generation(state, self.settings.train.generations)
        self.__post_init__()

    def prepare(self) -> None:
        """Write a checkpoint to roll back to, and compile the step; called before the first update.

        Raises:
            StoppedError: if a stop is requested meanwhile.
            ResourceError: if no checkpoint can be written.
        """
        if not self.run.checkpoints():
            self._keep_own()
            self.checkpointer.save_last()
        began = time.monotonic()
        try:
            with self.clock.pause():
                self.parts, self.runtime = compile_forward(self.parts, self.runtime, self.emit, self.stop)
        except StopNow:
            raise StoppedError(
                f"while compiling; {self.run.path} is at step {self.state.step}",
                f"continue with `cpulm resume {typed(self.run.path)}`",
            ) from None
        if self.horizon.seconds is not None:
            spent = time.monotonic() - began
            self.horizon = replace(self.horizon, seconds=self.horizon.seconds - spent)

    def train(self) -> EndReason:
        """Train until the horizon, an early end or a stop request.

        Returns:
            The reason why it ended: ``horizon``, ``target_loss``, ``patience`` or ``stopped``.

        Raises:
            DivergedError: if training diverges again after the rollbacks that are allowed.
            ResourceError: if checkpoints cannot be written any more.
            LostPeerError: if another process of the run has vanished; what is trained is saved.
        """
        self.parts.model.train()
        try:
            with adaptive_threads(self.parts, self.runtime) as self.threads:
                reason = self._missed_end() or self._loop()
            if reason == "horizon" and self.state.validated_step != self.state.step:
                reason = self._validate() or reason
        except LostPeerError:
            if not self.rounds.are_long:  # between two updates: nothing that is trained needs to be lost
                self.checkpointer.save_last()
            raise
        try:
            self._keep_own()
        finally:  # what is trained is saved, also if another process has vanished
            self.checkpointer.save_last()
        return reason

    def _missed_end(self) -> EndReason | None:
        """The reason for which the last validation ended the run, if it was killed before it could say so."""
        state = self.state
        if self.complete or state.validated_step is None or state.validated_step != state.step:
            return None
        loss = state.best_loss if state.best_step == state.step else None
        return self.validator.reason_to_end(state, loss)

    def _loop(self) -> EndReason:
        while True:
            step, own, progress = self.state.step, self.state.generation_steps, None
            if self.rounds.is_border(own):
                if self.rounds.any_due(self.validations.is_due, own) and self.state.validated_step != step:
                    reason = self._validate()
                    if reason is not None:
                        return reason
                if self.battery is not None and self.battery.paused():
                    self._wait_for_mains(self.battery)
                stop, progress = self._agreed()
                if stop:
                    return "stopped"
                if progress >= 1.0:
                    return "horizon"
            problem = self.update(progress)
            if self.state.step == step and problem is None:  # stopped between two micro-batches
                return "stopped"
            problem = self.rounds.after_update(problem, own + 1, self.last_seconds)
            if problem is not None:
                self._roll_back(problem, own)
            elif self.rounds.is_border(own + 1):  # all processes have the same weights
                if self.parts.average is not None:
                    self.parts.average.update(own + 1)
                if self._checkpoint_is_due():
                    self._save()

    def _on_gradients(self) -> None:
        self.layer_stats.before_update(self.state.step + 1)
        if self.world.size > 1 and not self.rounds.are_long:  # the answer comes while the optimizers work
            self._agreement = self._start_agreement(self.state.step + 1)

    def _start_agreement(self, step: int) -> Agreement:
        return self.world.start_agree(self.stop(), self._progress(step))

    def _agreed(self) -> tuple[bool, float]:
        """Whether to stop before the next update, and the progress of the generation, as in all processes."""
        agreement, self._agreement = self._agreement or self._start_agreement(self.state.step), None
        stop, (progress,) = agreement.wait()
        return stop, progress

    def _checkpoint_is_due(self) -> bool:
        due = self.checkpointer.is_due(self.state.step, self.clock.elapsed())
        return self.world.agree(due)[0] if self.rounds.are_long else due

    def update(self, progress: float | None = None) -> str | None:
        """Run one update; a stop request between its micro-batches discards it, and ``step`` does not change.

        Args:
            progress: of the generation; None: as it is now.

        Returns:
            The problem in words if the numbers diverge, else None.
        """
        began = self.clock.now()
        train, state, timer = self.settings.train, self.state, StepTimer()
        scale = self._lr_scale(self._progress(state.step) if progress is None else progress)
        set_lr_scale(self.parts.optimizers, scale)
        random_state = random_states(self.runtime.device)
        if not self.world.is_main:  # the main process's is in the checkpoints, those of others follow from it
            torch.manual_seed(_seed_of_update(train.seed, state.step, self.world.rank))
        try:
            result = training_update(
                self.parts,
                update_batches(state.generation_steps, train.grad_accum_steps, state.skipped),
                self.runtime,
                train.grad_clip,
                timer,
                should_stop=(lambda: False) if self.rounds.are_long else self.stop,
                on_gradients=self._on_gradients,
            )
        except LostPeerError:
            restore_random_states(random_state)
            raise
        if result is None:
            restore_random_states(random_state)
            return None
        if result.problem is not None:
            state.losses.note_non_finite()
            if self.rounds.are_long:  # the others, whose numbers are finite, count it too
                state.step, state.tokens = state.step + 1, state.tokens + self.settings.tokens_per_step
            return result.problem
        spike = state.losses.update(result.loss, train.spike_nats)
        problem = spike if self.world.is_main or not self.rounds.are_long else None
        self._note_update(result, scale, began, timer.seconds["data"])
        return problem

    def _note_update(self, result: UpdateResult, scale: float, began: float, data_seconds: float) -> None:
        state, train, tokens = self.state, self.settings.train, self.settings.tokens_per_step
        layer_stats = self.layer_stats.after_update()
        seconds = self.clock.now() - began
        state.step += 1
        state.tokens += tokens
        state.elapsed_seconds = self.clock.elapsed()
        self.last_seconds = seconds
        self.trained_seconds += seconds
        self.threads.update_done(seconds)
        self.trained_tokens += tokens
        self.emit(
            StepDone(
                step=state.step,
                generation=state.generation,
                loss=result.loss,
                lr=train.lr * scale,
                muon_lr=train.muon_lr * scale if train.optimizer == "muon" else None,
                grad_norm=result.grad_norm,
                tokens=state.tokens,
                epoch=self.parts.loader.epoch(state.generation_steps * train.grad_accum_steps),
                elapsed_seconds=state.elapsed_seconds,
                step_seconds=seconds,
                data_seconds=data_seconds,
                progress=self.horizon.progress(state.step, state.elapsed_seconds, time.time()),
                teacher_divergence=result.divergence,
            )
        )
        if layer_stats is not None:
            self.emit(layer_stats)

    def _lr_scale(self, progress: float) -> float:
        train = self.settings.train
        return lr_scale(
            train.schedule,
            self.state.generation_steps,
            progress,
            self.horizon.warmup_steps(train.warmup_steps),
            train.decay_fraction,
            train.min_lr_ratio,
        )

    def _progress(self, step: int) -> float:
        """Of the generation after ``step`` updates of the run, if that is now."""
        return self.horizon.generation_progress(step, self.clock.elapsed(), time.time())

    def _roll_back(self, problem: str, last: int) -> None:
        train, self._agreement = self.settings.train, None
        if self.rounds.are_long:  # whichever process had it: all of them skip the data of the whole round
            self.state.losses.high_updates = self.rounds.every
        self.state = roll_back(problem, last, self.state, self.parts, self.run, train, self.emit, self.world)
        self._save()

    def _save(self) -> None:
        self._keep_own()
        self.checkpointer.save(self.state.step, self.clock.elapsed())

    def _save_best(self) -> bool:
        self._keep_own()
        saved = self.checkpointer.save_best(self.state.step, self.clock.elapsed())
        if saved and self.settings.lora.rank and self.world.is_main:
            save_adapters(self.settings, self.parts, self.state, self.run, self.emit)
        return saved

    def _wait_for_mains(self, battery: BatteryWatch) -> None:
        """Save a checkpoint, because the battery may run out, and wait for mains, a stop or the deadline."""
        self.checkpointer.save(self.state.step, self.clock.elapsed())  # alone: the others know nothing of it

        def warn(message: str) -> None:
            self.emit(Notice(level="warning", message=message))

        def has_ended() -> bool:
            return self.stop() or self._progress(self.state.step) >= 1.0

        battery.wait_for_mains(has_ended, warn, self.clock)

    def _validate(self) -> EndReason | None:
        self._agreement, began = None, self.clock.now()
        with self.threads.calm_inside():
            reason = self.validator.validate(self.state)
        self._reserve(self.clock.now() - began)
        return reason

    def _reserve(self, validation_seconds: float) -> None:
        """Reserve time for the end: a validation with its sample, and two checkpoints like the slowest."""
        if self.horizon.is_time:
            reserve = validation_seconds + 2 * self.checkpointer.slowest_seconds
            self.horizon = replace(self.horizon, reserve_seconds=reserve)

    def _checkpoint(self) -> Checkpoint:
        self.state.saves += 1
        return Checkpoint(
            settings=self.settings,
            tokenizer_json=self.tokens.tokenizer.to_json(),
            vocab_size=self.parts.model.vocab_size,
            starts_documents=self.tokens.train_documents > 1,
            model_state=self.parts.model.state_dict(),
            average_state=self.parts.average.state_dict() if self.parts.average is not None else {},
            optimizer_states=[optimizer.state_dict() for optimizer in self.parts.optimizers],
            state=replace(self.state, elapsed_seconds=self.clock.elapsed()),
            random_state=random_states(self.runtime.device),
            runtime=self.runtime.facts(),
            data={
                "path": str(self.tokens.path),
                "digest": self.tokens.digest,
                "columns": self.tokens.columns,
            },
        )


def _seed_of_update(seed: int, step: int, rank: int) -> int:
    """The seed of dropout in update ``step`` of a process that is not the main one."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
