"""A run under way: what goes on beside the loop, and its first and its last event, whatever happens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from cpulm import __version__
from cpulm.errors import DivergedError, ResourceError
from cpulm.estimate.requirements import Requirements, seconds_needed
from cpulm.events import Event, Listener, MachineSampled, Notice, RunFinished, RunStarted
from cpulm.model.counts import flops_per_token
from cpulm.settings import RuntimeSettings
from cpulm.system.keep_awake import keep_awake
from cpulm.system.monitor import Monitor
from cpulm.system.power import battery_warning
from cpulm.system.priority import lower_priority
from cpulm.training.memory_watch import MemoryWatch
from cpulm.training.trainer import Trainer

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad alloc")
"""How torch says it on the systems and devices there are."""


def run_session(trainer: Trainer, plan: Requirements) -> str:
    """Train between the first and the last event of a run.

    Returns:
        Why it ended, one of RunFinished's reasons.

    Raises:
        DivergedError: on numbers that stay in trouble.
        ResourceError: where memory runs out, or checkpoints cannot be written any more.
        StoppedError: where a stop is asked for before the first update.
    """
    trainer.get_ready()
    estimated = seconds_needed(plan, trainer.settings.train)
    reason = "failed"
    trainer.emit(_started(trainer, plan))
    try:
        with _beside(trainer), _memory_errors(trainer):
            reason = trainer.train()
    except DivergedError:
        reason = "diverged"
        raise
    except ResourceError:
        reason = "no_room"
        raise
    finally:
        trainer.emit(_finished(trainer, reason, plan, estimated))
    return reason


@contextmanager
def _beside(trainer: Trainer) -> Iterator[None]:
    """What goes on while a run trains: its clock, the monitor, the watch over memory."""
    emit = trainer.emit
    watch = MemoryWatch(emit, trainer.saver.ask, _smaller(trainer))

    def hear(event: Event) -> None:
        emit(event)
        if isinstance(event, MachineSampled):
            watch(event)

    with trainer.clock, Monitor(hear):
        yield


@contextmanager
def considerate(runtime: RuntimeSettings) -> Iterator[Callable[[Listener], None]]:
    """From the first file that is read on: the priority as asked, and no falling asleep.

    Yields:
        What says, once there is a listener, what came of it.
    """
    with ExitStack() as stack:
        notices = []
        if runtime.nice:
            notices.append(Notice(level="info", message=lower_priority()))
        warning = None if runtime.pause_on_battery else battery_warning()
        if warning:
            notices.append(Notice(level="warning", message=warning))
        awake = None if runtime.allow_sleep else stack.enter_context(keep_awake())

        def say(emit: Listener) -> None:
            for notice in notices:
                emit(notice)
            if awake is not None:
                emit(Notice(level="info" if awake.held else "warning", message=awake.note))

        yield say


def _smaller(trainer: Trainer) -> str:
    """Flags for the same batch in smaller parts; empty where it is one row."""
    train = trainer.settings.train
    if train.micro_batch_size == 1:
        return ""
    size = train.micro_batch_size // 2
    parts = math.ceil(train.micro_batch_size * train.grad_accum_steps / size)
    return f"--set train.micro_batch_size={size} --set train.grad_accum_steps={parts}"


@contextmanager
def _memory_errors(trainer: Trainer) -> Iterator[None]:
    """Turn the ways in which Python and torch say that memory is out into one error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        why = (str(error).splitlines() or ["no more to be had"])[0]
        if isinstance(error, RuntimeError) and not any(words in why for words in _OUT_OF_MEMORY):
            raise
        raise ResourceError(
            f"out of memory in step {trainer.position.step + 1}: {why}",
            f"close other programs and go on with `cpulm resume {trainer.run.path}`, or start anew with "
            f"{_smaller(trainer) or 'a smaller model'}",
        ) from error


def _time_given(trainer: Trainer) -> float | None:
    """Seconds of its own time that a run with a horizon in time has in all; None for other horizons."""
    train, elapsed = trainer.settings.train, trainer.position.elapsed_seconds
    if train.until is None:
        return train.max_time
    return elapsed + trainer.horizon.seconds_left(elapsed, time.time())


def _started(trainer: Trainer, plan: Requirements) -> RunStarted:
    settings, runtime = trainer.settings, trainer.runtime
    return RunStarted(
        run=str(trainer.run.path),
        name=trainer.run.name,
        preset=settings.preset or "none",
        version=__version__,
        step=trainer.position.step,
        steps=plan.steps,
        max_time_seconds=_time_given(trainer),
        device=runtime.device.type,
        device_name=runtime.device_name,
        precision=runtime.precision,
        precision_reason=runtime.precision_reason,
        compiled=runtime.compiled,
        threads=runtime.threads,
        params_total=plan.params_total,
        params_non_embedding=plan.params_non_embedding,
        tokens_per_step=settings.tokens_per_step,
        flops_per_token=flops_per_token(settings.model, trainer.model.vocab_size),
        train_tokens=len(trainer.tokens.train),
        val_tokens=len(trainer.tokens.val),
        vocab_size=trainer.model.vocab_size,
        block_size=settings.model.block_size,
        notes=runtime.notes,
        peak_flops_per_second=plan.peak_flops_per_second,
    )


def _finished(
    trainer: Trainer, reason: str, plan: Requirements, estimated_seconds: float | None
) -> RunFinished:
    position, run, peak = trainer.position, trainer.run, plan.peak_flops_per_second
    kept = run.best if run.best.is_file() else run.latest
    tokens_per_second = trainer.trained_tokens / max(trainer.trained_seconds, 1e-9)
    flops = flops_per_token(trainer.settings.model, trainer.model.vocab_size) * tokens_per_second
    over = None
    trained = reason == "horizon" and trainer.trained_tokens  # none: a validation alone was missing
    if trained and estimated_seconds is not None and estimated_seconds == plan.train_seconds:
        # That is of training steps alone, and of the whole run: a resumed one has taken some of them.
        over = trainer.trained_seconds / (estimated_seconds * trainer.trained_tokens / position.tokens)
    return RunFinished(
        step=position.step,
        tokens=position.tokens,
        reason=reason,
        elapsed_seconds=position.elapsed_seconds,
        estimated_seconds=estimated_seconds,
        best_loss=position.best_loss,
        best_step=position.best_step,
        best_bits_per_byte=position.best_bits_per_byte,
        tokens_per_second=tokens_per_second,
        checkpoint=str(kept) if kept.is_file() else None,
        time_over_estimate=over,
        flops_per_second=flops or None,
        share_of_peak=flops / peak if flops and peak else None,
    )
