"""A run from start to end: get ready, say what it will need, train, say how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpulm import __version__, rundir
from cpulm.atomic import write_text
from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.engine import checkpoint as checkpoints
from cpulm.engine import needs
from cpulm.engine.build import Parts, build_parts, build_trainer
from cpulm.engine.checkpoint import Checkpoint
from cpulm.engine.generate import encode_prompt
from cpulm.engine.measure import measure_step
from cpulm.engine.monitor import Monitor
from cpulm.engine.needs import Plan
from cpulm.engine.runtime import Runtime, choose_runtime, decide_compile
from cpulm.engine.stop import StopRequest
from cpulm.engine.sysinfo import Machine, read_machine
from cpulm.engine.trainer import Trainer
from cpulm.errors import DataError, DivergedError, SettingsError
from cpulm.events import Event, Listener, Notice, Progress, RunFinished, RunStarted
from cpulm.model.counts import flops_per_token
from cpulm.optim.schedule import lr_scale
from cpulm.rundir import RunDir
from cpulm.settings import HORIZONS, Settings, changed, to_yaml
from cpulm.units import format_bytes, format_count, format_duration


@dataclass(frozen=True)
class Beginning:
    """Where a run's record is to be opened: after ``step``, as the checkpoint of ``role`` has it."""

    run: RunDir
    settings: Settings
    step: int = 0
    role: str = "latest"


Recorder = Callable[[Beginning], AbstractContextManager[Listener]]


@dataclass(frozen=True)
class Outcome:
    """What a run came to. ``reason`` is one of RunFinished's."""

    run: RunDir
    reason: str


@dataclass(frozen=True)
class Ready:
    """Everything but a folder: a run that could begin."""

    settings: Settings
    machine: Machine
    runtime: Runtime
    tokens: TokenFolder
    plan: Plan
    parts: Parts


def train(settings: Settings, out: Path | None, *, show: Listener, record: Recorder) -> Outcome:
    """Train a new run.

    Args:
        out: the run's folder, or None for the first free one under ``runs/``.
        show: hears every event.
        record: opens the listeners that write into the run's folder, once there is one.

    Raises:
        CpulmError: for everything the user can mend, with nothing that existed harmed.
    """
    began = time.monotonic()
    if out is not None:
        rundir.check_free(out)
    with StopRequest() as stop:
        ready = rehearse(settings, show=show, should_stop=stop)
        needs.check_disk(ready.plan.disk_bytes, out or Path("runs"))
        run = rundir.create(out, settings.preset or "run")
        write_text(run.settings, to_yaml(settings))
        with record(Beginning(run, settings)) as recorder:
            emit = _both(show, recorder)
            _say_needs(ready.plan, settings, emit)
            gone = time.monotonic() - began
            return _conduct(_trainer(ready, run, emit, stop, None, gone), ready.plan)


def resume(path: Path, horizon: Mapping[str, Any], *, show: Listener, record: Recorder) -> Outcome:
    """Go on with the run at ``path``, a folder or a checkpoint in it, as if it had never stopped.

    Args:
        horizon: a new horizon by the settings' names, None for those not given.

    Raises:
        CpulmError: for everything the user can mend; the run stays as it was.
    """
    began = time.monotonic()
    run = rundir.find(path)
    candidates = [path] if path.is_file() and path.suffix == ".pt" else run.checkpoints()
    with StopRequest() as stop:
        checkpoint, source, damaged = checkpoints.load_newest(candidates)
        settings = _extended(checkpoint.settings, horizon)
        ready = _ready_again(settings, checkpoint, show, stop)
        _refuse_finished(settings, ready.plan, checkpoint, run)
        needs.check_disk(ready.plan.disk_bytes, run.path)
        write_text(run.settings, to_yaml(settings))
        role = "best" if source == run.best else "latest"
        with record(Beginning(run, settings, checkpoint.step, role)) as recorder:
            emit = _both(show, recorder)
            for line in damaged:
                emit(Notice(level="warning", message=f"{line}; using {source.name} instead"))
            _say_extension(checkpoint, settings, ready.plan, emit)
            gone = time.monotonic() - began
            return _conduct(_trainer(ready, run, emit, stop, checkpoint, gone), ready.plan)


def rehearse(settings: Settings, *, show: Listener, should_stop: Callable[[], bool]) -> Ready:
    """Get ready for a run: prepare the data, take real steps on a throwaway model, see what it needs.

    Raises:
        CpulmError: where the run could not begin.
    """
    if all(getattr(settings.train, name) is None for name in HORIZONS):
        raise SettingsError(
            "the run has no horizon", "give one of --steps, --epochs, --tokens and --max-time, or a --preset"
        )
    machine = read_machine()
    runtime = choose_runtime(settings.runtime, machine)
    block = settings.model.block_size
    tokens = prepare(settings.data, emit=show, should_stop=should_stop, block_size=block)
    encode_prompt(tokens.tokenizer, settings.sample.prompt, starts_documents=True)
    needs.check_memory(settings, tokens.vocab_size, machine)
    plan = needs.plan(settings, tokens.vocab_size, len(tokens.train))
    parts = build_parts(settings, tokens, runtime)
    plan = replace(plan, step_seconds=_measured(parts, runtime, settings, show))
    planned = settings.train.max_time or plan.train_seconds
    runtime = decide_compile(runtime, settings.runtime.compile, machine, planned)
    parts = build_parts(settings, tokens, runtime)
    return Ready(settings, machine, runtime, tokens, plan, parts)


def _ready_again(
    settings: Settings, checkpoint: Checkpoint, show: Listener, should_stop: Callable[[], bool]
) -> Ready:
    """Ready as the checkpoint's run was, on the same data; the step time is the one it had."""
    machine = read_machine()
    runtime = _same_runtime(checkpoint, machine)
    needs.check_memory(settings, checkpoint.vocab_size, machine)
    tokens = _same_tokens(checkpoint, show, should_stop)
    plan = replace(
        needs.plan(settings, tokens.vocab_size, len(tokens.train)),
        step_seconds=checkpoint.position.elapsed_seconds / max(checkpoint.step, 1),
    )
    return Ready(settings, machine, runtime, tokens, plan, build_parts(settings, tokens, runtime))


def _trainer(
    ready: Ready,
    run: RunDir,
    emit: Listener,
    should_stop: Callable[[], bool],
    checkpoint: Checkpoint | None,
    seconds_gone: float,
) -> Trainer:
    return build_trainer(
        ready.settings,
        ready.tokens,
        ready.parts,
        ready.runtime,
        run,
        emit=emit,
        should_stop=should_stop,
        checkpoint=checkpoint,
        seconds_gone=seconds_gone,
    )


def _conduct(trainer: Trainer, plan: Plan) -> Outcome:
    """Train between the first and the last event of a run, whatever happens."""
    trainer.emit(_started(trainer, plan))
    estimated = trainer.settings.train.max_time or plan.train_seconds
    reason = "failed"
    try:
        with Monitor(trainer.emit):
            reason = trainer.train()
    except DivergedError:
        reason = "diverged"
        raise
    finally:
        trainer.emit(_finished(trainer, reason, estimated))
    return Outcome(trainer.run, reason)


def _measured(parts: Parts, runtime: Runtime, settings: Settings, show: Listener) -> float:
    """Seconds of one update, measured; this wears out ``parts``."""
    show(Progress(stage="measuring a step", done=0, total=None, unit="steps"))
    try:
        return measure_step(parts.model, parts.optimizers, parts.loader, runtime, settings)
    finally:
        show(Progress(stage="measuring a step", done=3, total=3, unit="steps", finished=True))


def _extended(settings: Settings, horizon: Mapping[str, Any]) -> Settings:
    given = {name: value for name, value in horizon.items() if value is not None}
    if not given:
        return settings
    if len(given) > 1:
        raise SettingsError(f"{len(given)} horizons given: {', '.join(given)}", "keep one of them")
    none: dict[str, float | int | None] = dict.fromkeys(HORIZONS)
    return changed(settings, train=changed(settings.train, **{**none, **given}))


def _same_runtime(checkpoint: Checkpoint, machine: Machine) -> Runtime:
    """The choices the checkpoint was made under, as far as this machine has them."""
    facts = checkpoint.runtime
    asked = checkpoint.settings.runtime
    threads = facts["threads"] if facts["threads"] <= machine.usable_logical else None
    same = changed(asked, device="auto" if asked.device == "auto" else asked.device, threads=threads)
    runtime = choose_runtime(changed(same, precision=facts["precision"]), machine)
    runtime = decide_compile(runtime, "on" if facts["compiled"] else "off", machine, None)
    differing = [name for name, value in runtime.facts().items() if facts.get(name) != value]
    if differing:
        runtime = runtime.noting(
            f"{', '.join(differing)} differ from the run's first part: the weights will not be bit-identical"
        )
    return runtime


def _same_tokens(checkpoint: Checkpoint, show: Listener, should_stop: Callable[[], bool]) -> TokenFolder:
    """The token folder of the checkpoint, made again from the same sources where it is gone."""
    path, digest = Path(checkpoint.data["path"]), checkpoint.data["digest"]
    if path.is_dir():
        tokens = TokenFolder.open(path)
        if tokens.digest == digest:
            return tokens
    tokens = prepare(checkpoint.settings.data, emit=show, should_stop=should_stop)
    if tokens.digest != digest:
        raise DataError(
            f"the token folder {path} is gone, and {', '.join(checkpoint.settings.data.source)} has changed",
            "bring back the files that the run began with, or start a new run",
        )
    return tokens


def _refuse_finished(settings: Settings, plan: Plan, checkpoint: Checkpoint, run: RunDir) -> None:
    position = checkpoint.position
    done = plan.steps is not None and position.step >= plan.steps
    time_is_up = settings.train.max_time is not None and position.elapsed_seconds >= settings.train.max_time
    if done or time_is_up:
        raise SettingsError(
            f"{run.path} has reached its horizon (step {position.step})",
            f"extend it, as with `cpulm resume {run.path} --steps {position.step * 2}`",
        )


def _say_needs(plan: Plan, settings: Settings, emit: Listener) -> None:
    if plan.train_seconds is not None:
        duration = f"about {format_duration(plan.train_seconds)} of training steps"
    else:
        duration = f"{format_duration(settings.train.max_time or 0)} as asked"
    emit(
        Notice(
            level="info",
            message=f"this run will need {duration}, {format_bytes(plan.memory_bytes)} of memory, "
            f"up to {format_bytes(plan.disk_bytes)} of disk; it trains on "
            f"{format_count(plan.train_tokens)} tokens"
            + (f", {plan.epochs:.2f} times" if plan.epochs is not None else ""),
        )
    )


def _say_extension(checkpoint: Checkpoint, settings: Settings, plan: Plan, emit: Listener) -> None:
    """What a new horizon does to the learning rate at the step where the run goes on."""
    if settings.train == checkpoint.settings.train:
        return
    position, train = checkpoint.position, settings.train

    def scale(steps: int | None, max_time: float | None) -> float:
        done = position.step / steps if steps else position.elapsed_seconds / (max_time or 1.0)
        return lr_scale(
            train.schedule,
            position.step,
            min(1.0, done),
            train.warmup_steps,
            train.decay_fraction,
            train.min_lr_ratio,
        )

    old = checkpoint.settings.train
    old_steps = needs.total_steps(old, settings.tokens_per_step, plan.train_tokens)
    emit(
        Notice(
            level="info",
            message=f"new horizon: the {train.schedule} schedule is stretched over it, so at step "
            f"{position.step} the learning rate goes from {train.lr * scale(old_steps, old.max_time):.2e} "
            f"to {train.lr * scale(plan.steps, train.max_time):.2e}",
        )
    )


def _started(trainer: Trainer, plan: Plan) -> RunStarted:
    settings, runtime = trainer.settings, trainer.runtime
    return RunStarted(
        run=str(trainer.run.path),
        name=trainer.run.name,
        preset=settings.preset or "none",
        version=__version__,
        step=trainer.position.step,
        steps=plan.steps,
        max_time_seconds=settings.train.max_time,
        device=runtime.device.type,
        device_name=runtime.device_name,
        precision=runtime.precision,
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
    )


def _finished(trainer: Trainer, reason: str, estimated_seconds: float | None) -> RunFinished:
    position, run = trainer.position, trainer.run
    kept = run.best if run.best.is_file() else run.latest
    return RunFinished(
        step=position.step,
        tokens=position.tokens,
        reason=reason,
        elapsed_seconds=position.elapsed_seconds,
        estimated_seconds=estimated_seconds,
        best_loss=position.best_loss,
        best_step=position.best_step,
        best_bits_per_byte=position.best_bits_per_byte,
        tokens_per_second=trainer.trained_tokens / max(trainer.trained_seconds, 1e-9),
        checkpoint=str(kept) if kept.is_file() else None,
    )


def _both(first: Listener, second: Listener) -> Listener:
    def emit(event: Event) -> None:
        first(event)
        second(event)

    return emit
