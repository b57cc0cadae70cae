"""A run from start to end: get ready, say what it will need, train, say how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpulm import run_dir
from cpulm.atomic import write_text
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.training_data import same_tokens
from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import SettingsError
from cpulm.estimate import requirements
from cpulm.estimate.memory import arithmetic, expected_arithmetic
from cpulm.estimate.requirements import Requirements
from cpulm.events import Event, Listener, Notice, Progress
from cpulm.execution.compilation import decide_compile
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.step_timing import measure_step, process_fp32_peak
from cpulm.generation.generate import encode_prompt
from cpulm.interrupts import StopRequest
from cpulm.run_dir import RunDir
from cpulm.runs.lock import locked
from cpulm.runs.stop_file import watch_for_stop
from cpulm.settings import HORIZONS, Settings, to_yaml
from cpulm.settings_resolver import replaced
from cpulm.system.allocator import release_memory
from cpulm.system.machine import Machine, read_machine
from cpulm.training.build import Parts, build_parts, build_trainer
from cpulm.training.resume_horizon import (
    extended,
    refuse_finished,
    say_extension,
    say_missing_documents,
    say_needs,
)
from cpulm.training.resume_runtime import resumed_runtime, say_differences
from cpulm.training.session import considerate, run_session


@dataclass(frozen=True)
class RecordStart:
    """Where a run's record is to be opened: behind its checkpoint number ``saves``, of ``step``."""

    run: RunDir
    settings: Settings
    step: int = 0
    saves: int = 0


Recorder = Callable[[RecordStart], AbstractContextManager[Listener]]


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to. ``reason`` is one of RunFinished's."""

    run: RunDir
    reason: str


@dataclass(frozen=True)
class PreparedRun:
    """Everything but a folder: a run that could begin."""

    settings: Settings
    machine: Machine
    runtime: Runtime
    tokens: TokenFolder
    plan: Requirements
    parts: Parts


def train(
    settings: Settings,
    out: Path | None,
    *,
    show: Listener,
    record: Recorder,
    leave: Callable[[], None] | None = None,
    began: float | None = None,
) -> RunOutcome:
    """Train a new run.

    Args:
        out: the run's folder, or None for the first free one under ``runs/``.
        show: hears every event.
        record: opens the listeners that write into the run's folder, once there is one.
        leave: gives the terminal back where a second Ctrl-C ends the process at once.
        began: when the command did, by ``time.monotonic``: ``train.max_time`` counts from there. None: now.

    Raises:
        CpulmError: for everything the user can mend, with nothing that existed harmed.
    """
    began = time.monotonic() if began is None else began
    if out is not None:
        run_dir.check_free(out)
    with StopRequest(leave) as stop, considerate(settings.runtime) as say_how:
        ready = prepare_run(settings, show=show, should_stop=stop)
        requirements.check_disk(ready.plan.disk_bytes, out or Path("runs"))
        run = run_dir.create(out, settings.preset or "run")
        with _exclusive(run, stop):
            write_text(run.settings, to_yaml(settings))
            with record(RecordStart(run, settings)) as recorder:
                emit = tee(show, recorder)
                say_needs(ready.plan, settings, emit)
                say_missing_documents(ready.tokens, settings, emit)
                say_how(emit)
                return _train(ready, run, emit, stop, began)


def resume(
    path: Path,
    horizon: Mapping[str, Any],
    changes: Mapping[str, Any],
    *,
    show: Listener,
    record: Recorder,
    leave: Callable[[], None] | None = None,
    began: float | None = None,
) -> RunOutcome:
    """Go on with the run at ``path``, a folder or a checkpoint in it, as if it had never stopped.

    Args:
        horizon: a new horizon by the settings' names, None for those not given.
        changes: other settings that leave the weights alone, such as ``runtime.nice``; None for those not
            given.
        leave: as in :func:`train`.
        began: as in :func:`train`.

    Raises:
        CpulmError: for everything the user can mend; the run stays as it was.
    """
    began = time.monotonic() if began is None else began
    run = run_dir.find(path)
    with StopRequest(leave) as stop, _exclusive(run, stop):
        candidates = [path] if path.is_file() and path.suffix == ".pt" else run.checkpoints()
        checkpoint, source, damaged = checkpoints.load_newest(candidates)
        settings = replaced(extended(checkpoint.settings, horizon), changes)
        with considerate(settings.runtime) as say_how:
            ready = _ready_again(settings, checkpoint, show, stop)
            refuse_finished(settings, ready.plan, checkpoint, run)
            requirements.check_disk(ready.plan.disk_bytes, run.path)
            write_text(run.settings, to_yaml(settings))
            begins = RecordStart(run, settings, checkpoint.step, checkpoint.position.saves)
            with record(begins) as recorder:
                emit = tee(show, recorder)
                for line in damaged:
                    emit(Notice(level="warning", message=f"{line}; using {source.name} instead"))
                say_extension(checkpoint, settings, ready.plan, emit)
                say_differences(checkpoint, ready.runtime, emit)
                say_how(emit)
                return _train(ready, run, emit, stop, began, checkpoint)


@contextmanager
def _exclusive(run: RunDir, stop: StopRequest) -> Iterator[None]:
    """The run's folder for this process alone, cleared of what dead ones left, and open to `cpulm stop`."""
    with locked(run):
        run.stop.unlink(missing_ok=True)
        for abandoned in run.path.glob(".*.tmp"):
            abandoned.unlink(missing_ok=True)
        with watch_for_stop(run, stop.request):
            yield


def _train(
    ready: PreparedRun,
    run: RunDir,
    emit: Listener,
    stop: StopRequest,
    began: float,
    checkpoint: Checkpoint | None = None,
) -> RunOutcome:
    trainer = build_trainer(
        ready.settings,
        ready.tokens,
        ready.parts,
        ready.runtime,
        run,
        emit=emit,
        stop=stop,
        checkpoint=checkpoint,
        began=began,
        step_seconds=ready.plan.step_seconds or 0.0,
    )
    return RunOutcome(run, run_session(trainer, ready.plan))


def prepare_run(settings: Settings, *, show: Listener, should_stop: Callable[[], bool]) -> PreparedRun:
    """Get ready for a run: prepare the data, take real steps on a throwaway model, see what it needs.

    Raises:
        CpulmError: where the run could not begin.
    """
    _require_horizon(settings)
    machine = read_machine()
    choose_runtime(settings.runtime, machine)  # refuses what is not to be had, before anything is prepared
    block = settings.model.block_size
    tokens = prepare(settings.data, emit=show, should_stop=should_stop, block_size=block)
    encode_prompt(tokens.tokenizer, settings.sample.prompt, starts_documents=True)
    expected = expected_arithmetic(settings, machine)
    requirements.check_memory(settings, tokens.vocab_size, expected, machine.memory_available_bytes)
    runtime = choose_runtime(settings.runtime, machine, settings.model)
    plan = requirements.estimate_requirements(
        settings, tokens.vocab_size, len(tokens.train), arithmetic(runtime)
    )
    plan = replace(
        plan,
        step_seconds=_measured(settings, tokens, runtime, show),
        peak_flops_per_second=process_fp32_peak(runtime.device, runtime.threads),
    )
    release_memory()
    planned = requirements.nominal_seconds(settings, tokens.vocab_size, plan.steps, runtime.device.type)
    runtime = decide_compile(runtime, settings.runtime.compile, machine, planned)
    parts = build_parts(settings, tokens, runtime)
    return PreparedRun(settings, machine, runtime, tokens, plan, parts)


def _ready_again(
    settings: Settings, checkpoint: Checkpoint, show: Listener, should_stop: Callable[[], bool]
) -> PreparedRun:
    """Ready as the checkpoint's run was, on the same data; the step time is the one it had, if it had one."""
    _require_horizon(settings)
    checkpoints.require_fit(checkpoint)
    machine = read_machine()
    runtime = resumed_runtime(checkpoint, machine)
    way = arithmetic(runtime)
    requirements.check_memory(settings, checkpoint.vocab_size, way, machine.memory_available_bytes)
    tokens = same_tokens(checkpoint, show, should_stop)
    if checkpoint.step:
        seconds = checkpoint.position.elapsed_seconds / checkpoint.step
    else:
        seconds = _measured(settings, tokens, runtime, show)
        release_memory()
    plan = replace(
        requirements.estimate_requirements(settings, tokens.vocab_size, len(tokens.train), way),
        step_seconds=seconds,
        peak_flops_per_second=process_fp32_peak(runtime.device, runtime.threads),
    )
    return PreparedRun(settings, machine, runtime, tokens, plan, build_parts(settings, tokens, runtime))


def _require_horizon(settings: Settings) -> None:
    if all(getattr(settings.train, name) is None for name in HORIZONS):
        raise SettingsError(
            "the run has no horizon", "give --steps, --epochs, --tokens, --max-time or --until, or a --preset"
        )


def _measured(settings: Settings, tokens: TokenFolder, runtime: Runtime, show: Listener) -> float:
    """Seconds of one update, measured on a model that is thrown away."""
    show(Progress(stage="measuring a step", done=0, total=None, unit="steps"))
    try:
        parts = build_parts(settings, tokens, runtime)
        return measure_step(parts.model, parts.optimizers, parts.loader, runtime, settings)
    finally:
        show(Progress(stage="measuring a step", done=3, total=3, unit="steps", finished=True))


def tee(first: Listener, second: Listener) -> Listener:
    def emit(event: Event) -> None:
        first(event)
        second(event)

    return emit
