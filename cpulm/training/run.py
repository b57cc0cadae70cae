"""Trains a new run or resumes one: prepare it, report what it requires, run the session."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpulm import run_dir
from cpulm.atomic import write_text
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.training_data import same_tokens
from cpulm.data.packing import tokens_per_epoch
from cpulm.data.prepare import prepare_fitting
from cpulm.data.sources import absolute_sources
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import DataError, SettingsError, memory_errors
from cpulm.estimate import requirements
from cpulm.estimate.memory import arithmetic_of, expected_arithmetic
from cpulm.estimate.requirements import Requirements
from cpulm.events import EndReason, Event, Listener, Notice, Progress
from cpulm.execution.adaptive_threads import measured_as_in_a_run
from cpulm.execution.compilation import decide_compile
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.step_timing import cached_fp32_peak, measure_step
from cpulm.execution.update import TrainingParts
from cpulm.generation.generate import encode_prompt
from cpulm.interrupts import StopRequest
from cpulm.run_dir import RunDir
from cpulm.runs.lock import locked
from cpulm.runs.status import is_complete
from cpulm.runs.stop_file import watch_for_stop, withdraw_stop
from cpulm.settings import HORIZONS, Settings, changed, settings_yaml
from cpulm.settings_resolver import replaced
from cpulm.system.allocator import release_memory
from cpulm.system.cpu_use import OthersUse
from cpulm.system.machine import Machine, read_machine
from cpulm.training.build import build_parts, build_random_parts, build_trainer
from cpulm.training.go_back import go_back_to
from cpulm.training.initial import read_initial, require_fit, require_tokenizer
from cpulm.training.resume_horizon import (
    report_documents,
    report_new_horizon,
    report_passes,
    report_requirements,
    require_steps,
    require_time,
    require_unfinished,
    with_horizon,
)
from cpulm.training.resume_runtime import report_differences, resumed_runtime
from cpulm.training.session import host_settings, run_session
from cpulm.training.teaching import (
    keep_teacher,
    kept_teacher,
    teacher_of,
    teacher_shape,
    with_absolute_models,
)

_LESS_MEMORY = "close other programs, or lower train.micro_batch_size, model.n_layer or model.n_embd"


@dataclass(frozen=True)
class RecordStart:
    """Where the log of a new or resumed run begins: after its checkpoint number ``saves``, at ``step``."""

    run: RunDir
    settings: Settings
    step: int = 0
    saves: int = 0


Recorder = Callable[[RecordStart], AbstractContextManager[Listener]]


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, after ``step`` updates."""

    run: RunDir
    reason: EndReason
    step: int


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to begin; its folder does not exist yet.

    ``teacher`` has no optimizer states; None if the model learns from the text alone. ``begins_with`` says in
    words what trained model the run begins with; empty if none.
    """

    settings: Settings
    machine: Machine
    runtime: Runtime
    tokens: TokenFolder
    plan: Requirements
    parts: TrainingParts
    teacher: Checkpoint | None = None
    begins_with: str = ""


def train(
    settings: Settings,
    out: Path | None,
    *,
    show: Listener,
    record: Recorder,
    leave: Callable[[], None] | None = None,
    began: float | None = None,
    block_is_wish: bool = False,
    explain: Callable[[PreparedRun], Sequence[str]] = lambda _: (),
) -> RunOutcome:
    """Train a new run.

    Args:
        out: the run's folder, or None for the first free one under ``runs/``.
        show: receives every event.
        record: opens the listeners that write into the run's folder, once it exists.
        leave: restores the terminal if a second Ctrl-C ends the process at once.
        began: ``time.monotonic()`` at the start of the command: ``train.max_time`` counts from then. None:
            now.
        block_is_wish: as in :func:`prepare_run`.
        explain: what else to say of the run before it begins, such as what to expect of it.

    Raises:
        CpulmError: for everything that the user can correct; nothing that existed before is changed.
    """
    began = time.monotonic() if began is None else began
    settings = changed(settings, data=absolute_sources(settings.data))
    settings = with_absolute_models(settings)
    if out is not None:
        run_dir.check_free(out)
    with StopRequest(leave) as stop, host_settings(settings.runtime) as report_host:
        prepared = prepare_run(settings, show=show, should_stop=stop, block_is_wish=block_is_wish)
        settings = prepared.settings
        require_time(prepared.plan, settings, time.monotonic() - began)
        requirements.check_disk(prepared.plan.disk_bytes, out or Path("runs"))
        run = run_dir.create(out, settings.preset or "run")
        with _exclusive(run, stop):
            write_text(run.settings, settings_yaml(settings))
            teacher = keep_teacher(prepared.teacher, run) if prepared.teacher else ""
            with record(RecordStart(run, settings)) as recorder:
                emit = tee(show, recorder)
                if prepared.begins_with:
                    emit(Notice(level="info", message=prepared.begins_with))
                report_requirements(prepared.plan, settings, emit)
                for line in explain(prepared):
                    emit(Notice(level="info", message=line))
                report_documents(prepared.tokens, settings, emit)
                report_host(emit)
                return _train(prepared, run, emit, stop, began, teacher=teacher)


def resume(
    path: Path,
    horizon: Mapping[str, Any],
    changes: Mapping[str, Any],
    *,
    show: Listener,
    record: Recorder,
    leave: Callable[[], None] | None = None,
    began: float | None = None,
    without_teacher: bool = False,
) -> RunOutcome:
    """Continue the run at ``path``, a folder or a checkpoint in it, as if it had never stopped.

    Args:
        horizon: the new horizon, by the settings' names; None for those not given.
        changes: other settings that do not affect the weights, by dotted key, such as ``runtime.nice``; None
            for those not given. ``data.source`` says where the same text is now.
        leave: as in :func:`train`.
        began: as in :func:`train`.
        without_teacher: if the teacher's file is gone or damaged, continue from the text alone.

    Raises:
        CpulmError: for everything that the user can correct; the run stays as it was.
    """
    began = time.monotonic() if began is None else began
    run = run_dir.find(path)
    with StopRequest(leave) as stop, _exclusive(run, stop):
        candidates = [path] if path.is_file() and path.suffix == ".pt" else run.checkpoints()
        checkpoint, source, damaged = checkpoints.load_newest(candidates)
        skipped = [
            Notice(level="warning", message=f"{line}; using {source.name} instead") for line in damaged
        ]
        for notice in skipped:  # at once: what is wrong with the older one may follow from it
            show(notice)
        settings = replaced(with_horizon(checkpoint.settings, horizon), changes)
        settings = changed(settings, data=absolute_sources(settings.data))
        with host_settings(settings.runtime) as report_host:
            prepared = _prepare_resume(settings, checkpoint, run, show, stop, without_teacher)
            complete = is_complete(run)
            if complete:
                require_unfinished(settings, prepared.plan, checkpoint, run)
            requirements.check_disk(prepared.plan.disk_bytes, run.path)
            earlier = go_back_to(checkpoint, source, run)
            write_text(run.settings, settings_yaml(settings))
            begins = RecordStart(run, settings, checkpoint.step, checkpoint.state.saves)
            with record(begins) as recorder:
                emit = tee(show, recorder)
                for notice in skipped:
                    recorder(notice)
                for line in earlier:
                    emit(Notice(level="info", message=line))
                report_new_horizon(checkpoint, settings, prepared.plan, emit)
                report_passes(prepared.plan, settings, emit, checkpoint.state.tokens)
                report_differences(checkpoint, prepared.runtime, emit)
                report_host(emit)
                teacher = checkpoint.state.teacher if prepared.teacher else ""
                return _train(
                    prepared, run, emit, stop, began, checkpoint, teacher=teacher, complete=complete
                )


@contextmanager
def _exclusive(run: RunDir, stop: StopRequest) -> Iterator[None]:
    """Lock the run's folder, delete what killed processes left there, and watch for `cpulm stop`."""
    with locked(run):
        withdraw_stop(run)
        for abandoned in run.path.glob(".*.tmp"):
            abandoned.unlink(missing_ok=True)
        with watch_for_stop(run, stop.request):
            yield


def _train(
    prepared: PreparedRun,
    run: RunDir,
    emit: Listener,
    stop: StopRequest,
    began: float,
    checkpoint: Checkpoint | None = None,
    *,
    teacher: str,
    complete: bool = False,
) -> RunOutcome:
    trainer = build_trainer(
        prepared.settings,
        prepared.tokens,
        prepared.parts,
        prepared.runtime,
        run,
        emit=emit,
        stop=stop,
        checkpoint=checkpoint,
        teacher=teacher,
        complete=complete,
        began=began,
        step_seconds=prepared.plan.step_seconds or 0.0,
    )
    reason = run_session(trainer, prepared.plan)
    return RunOutcome(run, reason, trainer.state.step)


@memory_errors("while the run is prepared", _LESS_MEMORY)
def prepare_run(
    settings: Settings, *, show: Listener, should_stop: Callable[[], bool], block_is_wish: bool = False
) -> PreparedRun:
    """Prepare a run: tokenize its data, choose the runtime, time real updates, estimate its requirements.

    Args:
        block_is_wish: take the largest block size that the text allows, if it is less than the settings'.

    Raises:
        CpulmError: if the run could not begin.
    """
    _require_horizon(settings)
    machine, others = read_machine(), OthersUse()
    choose_runtime(settings.runtime, machine)  # refuses what is not available, before the data is prepared
    initial = None if settings.train.init_from is None else read_initial(settings.train.init_from, show)
    if initial is not None:
        require_fit(initial, settings)
    tokens, settings = prepare_fitting(
        settings,
        emit=show,
        should_stop=should_stop,
        block_is_wish=block_is_wish,
        tokenizer=None if initial is None else initial.tokenizer,
    )
    if initial is not None:
        require_tokenizer(initial, tokens)
    try:
        encode_prompt(tokens.tokenizer, settings.sample.prompt, starts_documents=True)
    except DataError as error:
        raise DataError(
            f"sample.prompt: {error.message}",
            "change it (--set sample.prompt=TEXT), or use data.tokenizer=byte",
        ) from error
    teacher = teacher_of(settings, tokens, show)
    shape = teacher_shape(settings, teacher, tokens.vocab_size)
    expected = expected_arithmetic(settings, machine)
    available = requirements.memory_for_run(machine)
    requirements.check_memory(settings, tokens.vocab_size, expected, available, shape)
    runtime = choose_runtime(settings.runtime, machine, settings.model)
    plan = requirements.estimate_requirements(
        settings, tokens.vocab_size, tokens_per_epoch(settings, tokens), arithmetic_of(runtime), shape
    )
    require_steps(plan, settings)
    plan = replace(
        plan,
        step_seconds=_measured_step(settings, tokens, runtime, teacher, show, others),
        peak_flops_per_second=cached_fp32_peak(runtime.device, runtime.threads),
    )
    release_memory()
    planned = requirements.nominal_seconds(settings, tokens.vocab_size, plan.steps, runtime.device.type)
    runtime = decide_compile(runtime, settings.runtime.compile, machine, planned)
    parts = build_parts(settings, tokens, runtime, teacher, initial=initial)
    begins_with = "" if initial is None else initial.described(tokens.tokenizer)
    return PreparedRun(settings, machine, runtime, tokens, plan, parts, teacher, begins_with)


@memory_errors("while the run is prepared", _LESS_MEMORY)
def _prepare_resume(
    settings: Settings,
    checkpoint: Checkpoint,
    run: RunDir,
    show: Listener,
    should_stop: Callable[[], bool],
    without_teacher: bool,
) -> PreparedRun:
    """Prepare a resumed run on the same data; its step time is the mean so far."""
    _require_horizon(settings)
    checkpoints.require_fit(checkpoint)
    machine, others = read_machine(), OthersUse()
    runtime = resumed_runtime(checkpoint, machine)
    arithmetic = arithmetic_of(runtime)
    teacher = kept_teacher(run, checkpoint, show, without=without_teacher)
    shape = teacher_shape(settings, teacher, checkpoint.vocab_size)
    available = requirements.memory_for_run(machine)
    requirements.check_memory(settings, checkpoint.vocab_size, arithmetic, available, shape)
    tokens = same_tokens(checkpoint, show, should_stop, settings.data)
    if checkpoint.step:
        seconds = checkpoint.state.elapsed_seconds / checkpoint.step
    else:
        seconds = _measured_step(settings, tokens, runtime, teacher, show, others)
        release_memory()
    plan = replace(
        requirements.estimate_requirements(
            settings, tokens.vocab_size, tokens_per_epoch(settings, tokens), arithmetic, shape
        ),
        step_seconds=seconds,
        peak_flops_per_second=cached_fp32_peak(runtime.device, runtime.threads),
    )
    parts = build_parts(settings, tokens, runtime, teacher, checkpoint.state.generation)
    return PreparedRun(settings, machine, runtime, tokens, plan, parts, teacher)


def _require_horizon(settings: Settings) -> None:
    if all(getattr(settings.train, name) is None for name in HORIZONS):
        raise SettingsError(
            "the run has no horizon", "give --steps, --epochs, --tokens, --max-time or --until, or a --preset"
        )


def _measured_step(
    settings: Settings,
    tokens: TokenFolder,
    runtime: Runtime,
    teacher: Checkpoint | None,
    show: Listener,
    others: OthersUse,
) -> float:
    """Measure the seconds of one update on temporary parts, the mean over the run's generations.

    Args:
        others: what other programs used since the preparation began.
    """
    show(Progress(stage="measuring a step", done=0, total=None, unit="steps"))
    train, later = settings.train, settings.train.generations - 1

    def seconds_of(parts: TrainingParts) -> float:
        return measured_as_in_a_run(
            lambda: measure_step(parts, runtime, train), runtime.threads, others=others.read
        )

    try:
        seconds = seconds_of(build_parts(settings, tokens, runtime, teacher))
        if not later:
            return seconds
        with_teacher = build_random_parts(settings, tokens.vocab_size, runtime)
        return (seconds + later * seconds_of(with_teacher)) / (1 + later)
    finally:
        show(Progress(stage="measuring a step", done=3, total=3, unit="steps", finished=True))


def tee(first: Listener, second: Listener) -> Listener:
    """Return a listener that passes every event to both."""

    def emit(event: Event) -> None:
        first(event)
        second(event)

    return emit
