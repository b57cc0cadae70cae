"""Runs the training loop between RunStarted and RunFinished, with the monitors beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from cpulm import __version__
from cpulm.address_space import more_memory
from cpulm.command import typed
from cpulm.data.byte_ngrams import text_curve
from cpulm.errors import AbortedError, DivergedError, ResourceError, out_of_memory
from cpulm.estimate.requirements import Requirements, micro_batch_flags, seconds_needed
from cpulm.events import EndReason, Event, Listener, MachineSampled, Notice, RunFinished, RunStarted
from cpulm.interrupts import STOPPING
from cpulm.model.counts import flops_per_token
from cpulm.settings import RuntimeSettings
from cpulm.system.cpu_use import OthersUse
from cpulm.system.keep_awake import keep_awake
from cpulm.system.monitor import Monitor
from cpulm.system.power import battery_warning
from cpulm.system.priority import lower_priority
from cpulm.training.generations import train_generations
from cpulm.training.memory_watch import MemoryWatch
from cpulm.training.trainer import Trainer
from cpulm.units import format_duration


def run_session(trainer: Trainer, plan: Requirements) -> EndReason:
    """Train between RunStarted and RunFinished.

    Returns:
        The reason why it ended.

    Raises:
        DivergedError: if training diverges again after the rollbacks that are allowed.
        ResourceError: if memory runs out, or checkpoints cannot be written any more.
        StoppedError: if a stop is requested before the first update.
    """
    trainer.prepare()
    estimated = seconds_needed(plan, trainer.settings.train)
    reason: EndReason = "failed"
    others = OthersUse(trainer.runtime.others_of_run)
    trainer.emit(_started(trainer, plan))
    announce_stops(trainer, lambda: trainer.emit(_finished(trainer, "aborted", plan, estimated, others)))
    try:
        with _monitored(trainer), _memory_errors(trainer):
            reason = train_generations(trainer)
    except AbortedError:
        reason = "aborted"
        raise
    except DivergedError:
        reason = "diverged"
        raise
    except ResourceError:
        reason = "no_room"
        raise
    finally:
        trainer.stop.on_signal = trainer.stop.on_exit = None
        trainer.emit(_finished(trainer, reason, plan, estimated, others))
    return reason


def announce_stops(trainer: Trainer, aborted: Callable[[], None]) -> None:
    """Answer the first stop signal at once with a notice, and let the second one say what it loses.

    Args:
        aborted: records the end before the second one ends the process at once.
    """

    def unsaved() -> str:
        saved = trainer.checkpointer.saved_step
        count = trainer.state.step - saved
        return f"{count:,} step{'s' * (count != 1)} after the checkpoint of step {saved:,}"

    def announce() -> None:
        updates = trainer.trained_tokens / trainer.settings.tokens_per_step
        seconds = trainer.trained_seconds / updates + trainer.checkpointer.slowest_seconds if updates else 0.0
        within = "a second" if seconds < 1 else format_duration(seconds)
        when = f"within about {within}" if updates else "soon"
        message = f"{STOPPING}: all is saved {when}; Ctrl-C again loses {unsaved()}"
        trainer.emit(Notice(level="warning", message=message))

    trainer.stop.on_signal, trainer.stop.on_exit = announce, aborted
    trainer.stop.unsaved = lambda: f"{unsaved()} are lost"


@contextmanager
def _monitored(trainer: Trainer) -> Iterator[None]:
    """Run the clock, the machine's monitor and the memory watch beside the training loop."""
    emit = trainer.emit
    watch = MemoryWatch(emit, lambda: trainer.checkpointer.request(), _smaller_batch(trainer))

    def emit_and_watch(event: Event) -> None:
        emit(event)
        if isinstance(event, MachineSampled):
            watch(event)

    with trainer.clock, Monitor(emit_and_watch):
        yield


@contextmanager
def host_settings(runtime: RuntimeSettings) -> Iterator[Callable[[Listener], None]]:
    """Apply the settings that concern the whole computer: process priority, and keeping it awake.

    Yields a function that reports the result to a listener: the settings take effect before one exists.
    """
    with ExitStack() as stack:
        notices = []
        if runtime.nice:
            notices.append(Notice(level="info", message=lower_priority()))
        warning = None if runtime.pause_on_battery else battery_warning()
        if warning:
            notices.append(Notice(level="warning", message=warning))
        awake = None if runtime.allow_sleep else stack.enter_context(keep_awake())

        def report(emit: Listener) -> None:
            for notice in notices:
                emit(notice)
            if awake is not None and awake.note:
                emit(Notice(level="info" if awake.held else "warning", message=awake.note))

        yield report


def _smaller_batch(trainer: Trainer) -> str:
    """Return the flags for micro-batches of half the size; empty if a micro-batch is one row."""
    train = trainer.settings.train
    return "" if train.micro_batch_size == 1 else micro_batch_flags(train, train.micro_batch_size // 2)


@contextmanager
def _memory_errors(trainer: Trainer) -> Iterator[None]:
    """Say in which step memory ran out, and how to continue."""
    try:
        yield
    except Exception as error:
        if why := out_of_memory(error):
            raise ResourceError(
                f"out of memory in step {trainer.state.step + 1}: {why}",
                f"{more_memory()} and continue with `cpulm resume {typed(trainer.run.path)}`, or start "
                f"a new run with {_smaller_batch(trainer) or 'a smaller model'}",
            ) from error
        raise


def _time_given(trainer: Trainer) -> float | None:
    """Return the run time of a run with a horizon in time, in seconds; None for other horizons.

    What the preparation took is not of it: ``train.max_time`` counts from the start of the command.
    """
    elapsed = trainer.state.elapsed_seconds
    if not trainer.horizon.is_time:
        return None
    return elapsed + trainer.horizon.seconds_left(elapsed, time.time())


def _started(trainer: Trainer, plan: Requirements) -> RunStarted:
    settings, runtime = trainer.settings, trainer.runtime
    curve = text_curve(trainer.tokens)
    return RunStarted(
        run=str(trainer.run.path),
        name=trainer.run.name,
        preset=settings.preset or "none",
        version=__version__,
        step=trainer.state.step,
        generation=trainer.state.generation,
        generations=settings.train.generations,
        steps=plan.steps,
        max_time_seconds=_time_given(trainer),
        most_steps=trainer.horizon.last_step,
        device=runtime.device.type,
        device_name=runtime.device_name,
        precision=runtime.precision,
        precision_reason=runtime.precision_reason,
        compiled=runtime.compiled,
        threads=runtime.threads,
        processes=runtime.processes,
        writes_samples=settings.sample.max_new_tokens > 0,
        params_total=plan.params_total,
        params_non_embedding=plan.params_non_embedding,
        tokens_per_step=settings.tokens_per_step,
        flops_per_token=flops_per_token(settings.model, trainer.parts.model.vocab_size, settings.lora),
        train_tokens=len(trainer.tokens.train),
        val_tokens=len(trainer.tokens.val),
        vocab_size=trainer.parts.model.vocab_size,
        block_size=settings.model.block_size,
        notes=runtime.notes,
        peak_flops_per_second=plan.peak_flops_per_second,
        text_level=curve and curve[0],
        text_slope=curve and curve[1],
    )


def _finished(
    trainer: Trainer,
    reason: EndReason,
    plan: Requirements,
    estimated_seconds: float | None,
    others: OthersUse,
) -> RunFinished:
    state, run, peak = trainer.state, trainer.run, plan.peak_flops_per_second
    kept = run.best if run.best.is_file() else run.latest
    tokens_per_second = trainer.trained_tokens / max(trainer.trained_seconds, 1e-9)
    settings, vocab_size = trainer.settings, trainer.parts.model.vocab_size
    flops = flops_per_token(settings.model, vocab_size, settings.lora) * tokens_per_second
    over = None
    trained = state.step == plan.last_step and trainer.trained_tokens  # zero if a validation was missing
    if trained and estimated_seconds is not None and estimated_seconds == plan.train_seconds:
        # The estimate counts the training steps of the whole run; this process trained only a part of them.
        over = trainer.trained_seconds / (estimated_seconds * trainer.trained_tokens / state.tokens)
    cores_used = others.read()
    return RunFinished(
        step=state.step,
        tokens=state.tokens,
        reason=reason,
        elapsed_seconds=state.elapsed_seconds,
        estimated_seconds=estimated_seconds,
        best_loss=state.best_loss,
        best_step=state.best_step,
        best_bits_per_byte=state.best_bits_per_byte,
        tokens_per_second=tokens_per_second,
        checkpoint=str(kept) if kept.is_file() else None,
        time_over_estimate=over,
        flops_per_second=flops or None,
        share_of_peak=flops / peak if flops and peak else None,
        text_lost=trainer.tokens.lost_share,
        others_cpu=None if cores_used is None else min(1.0, cores_used / (os.cpu_count() or 1)),
    )
