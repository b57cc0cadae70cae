"""Trains a new run or resumes one: prepare it, report what it requires, run the session."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpulm import run_dir
from cpulm.atomic import write_text
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.data.sources import absolute_sources
from cpulm.distributed.world import SOLO, World
from cpulm.estimate import requirements
from cpulm.events import EndReason, Event, Listener, Notice
from cpulm.interrupts import StopRequest
from cpulm.run_dir import RunDir
from cpulm.runs.lock import locked
from cpulm.runs.status import is_complete
from cpulm.runs.stop_file import watch_for_stop, withdraw_stop
from cpulm.settings import Settings, changed, settings_yaml
from cpulm.settings.resolve_settings import replaced
from cpulm.training.build import build_trainer
from cpulm.training.go_back import go_back_to
from cpulm.training.other_processes import (
    require_same_weights,
    scratch_run,
    share_checkpoint,
    share_state,
)
from cpulm.training.prepare_run import PreparedRun as PreparedRun
from cpulm.training.prepare_run import prepare_resume
from cpulm.training.prepare_run import prepare_run as prepare_run
from cpulm.training.resume_horizon import (
    report_documents,
    report_new_horizon,
    report_passes,
    report_requirements,
    require_time,
    require_unfinished,
    with_horizon,
)
from cpulm.training.resume_runtime import report_differences
from cpulm.training.session import host_settings, run_session
from cpulm.training.teaching import (
    keep_teacher,
    with_absolute_models,
)


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
    """How a run ended, after ``step`` updates, and whether its validation losses have risen."""

    run: RunDir
    reason: EndReason
    step: int
    risen: bool


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
    world: World = SOLO,
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
        world: the processes that train it together; only the main one writes into ``out``.

    Raises:
        CpulmError: for everything that the user can correct; nothing that existed before is changed.
    """
    began = time.monotonic() if began is None else began
    settings = changed(settings, data=absolute_sources(settings.data))
    settings = with_absolute_models(settings)
    if out is not None and world.is_main:
        run_dir.check_free(out)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(leave))
        report_host = stack.enter_context(host_settings(settings.runtime))
        prepared = prepare_run(
            settings, show=show, should_stop=stop, block_is_wish=block_is_wish, world=world
        )
        settings = prepared.settings
        require_time(prepared.plan, settings, time.monotonic() - began)
        if world.is_main:
            requirements.check_disk(prepared.plan.disk_bytes, out or Path("runs"))
            run = run_dir.create(out, settings.preset or "run")
        else:
            run = stack.enter_context(scratch_run())
        with _exclusive(run, stop):
            write_text(run.settings, settings_yaml(settings))
            teacher = keep_teacher(prepared.teacher, run) if prepared.teacher else ""
            with record(RecordStart(run, settings)) as recorder:
                emit = tee(show, recorder)
                if prepared.begins_with:
                    emit(Notice(level="info", message=prepared.begins_with))
                explained, spent = explain(prepared), time.monotonic() - began
                report_requirements(
                    prepared.plan, settings, emit, spent_seconds=spent, is_planned=bool(explained)
                )
                for line in explained:
                    emit(Notice(level="info", message=line))
                report_documents(prepared.tokens, settings, emit)
                report_host(emit)
                return _train(prepared, run, emit, stop, began, teacher=teacher, world=world)


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
    world: World = SOLO,
) -> RunOutcome:
    """Continue the run at ``path``, a folder or a checkpoint in it, as if it had never stopped.

    Args:
        horizon: the new horizon, by the settings' names; None for those not given.
        changes: other settings that do not affect the weights, by dotted key, such as ``runtime.nice``; None
            for those not given. ``data.source`` says where the same text is now.
        leave: as in :func:`train`.
        began: as in :func:`train`.
        without_teacher: if the teacher's file is gone or damaged, continue from the text alone.
        world: as in :func:`train`; only the main process has the run.

    Raises:
        CpulmError: for everything that the user can correct; the run stays as it was.
    """
    began = time.monotonic() if began is None else began
    with StopRequest(leave) as stop, _opened(path, stop, world) as run:
        checkpoint, source, skipped = _newest(path, run, show, world)
        settings = _resumed_settings(checkpoint, horizon, changes, world)
        with host_settings(settings.runtime) as report_host:
            prepared = prepare_resume(settings, checkpoint, run, show, stop, without_teacher, world)
            complete = bool(world.share(is_complete(run)))
            if complete:
                require_unfinished(settings, prepared.plan, checkpoint, run)
            requirements.check_disk(prepared.plan.disk_bytes, run.path)
            earlier = go_back_to(checkpoint, source, run)
            share_state(world, checkpoint)
            write_text(run.settings, settings_yaml(settings))
            begins = RecordStart(run, settings, checkpoint.step, checkpoint.state.saves)
            with record(begins) as recorder:
                emit = tee(show, recorder)
                for notice in skipped:
                    recorder(notice)
                for line in earlier:
                    emit(Notice(level="info", message=line))
                report_new_horizon(checkpoint, settings, prepared.plan, emit)
                trained = checkpoint.state.tokens
                passes = requirements.expected_passes(prepared.plan, settings.train, trained)
                report_passes(passes, prepared.plan, settings, emit)
                report_differences(checkpoint, prepared.runtime, emit)
                report_host(emit)
                teacher = checkpoint.state.teacher if prepared.teacher else ""
                return _train(
                    prepared,
                    run,
                    emit,
                    stop,
                    began,
                    checkpoint,
                    teacher=teacher,
                    complete=complete,
                    world=world,
                )


@contextmanager
def _opened(path: Path, stop: StopRequest, world: World) -> Iterator[RunDir]:
    """Open the run at ``path`` alone; in other processes, an empty folder for what the main one sends."""
    with ExitStack() as stack:
        run = run_dir.find(path) if world.is_main else stack.enter_context(scratch_run())
        stack.enter_context(_exclusive(run, stop))
        yield run


def _newest(
    path: Path, run: RunDir, show: Listener, world: World
) -> tuple[Checkpoint, Path, Sequence[Notice]]:
    """Return the checkpoint to continue from, its file, and a notice for each damaged one."""
    if not world.is_main:
        return share_checkpoint(world, None, None, run), run.latest, ()
    candidates = [path] if path.is_file() and path.suffix == ".pt" else run.checkpoints()
    checkpoint, source, damaged = checkpoints.load_newest(candidates)
    skipped = [Notice(level="warning", message=f"{line}; using {source.name} instead") for line in damaged]
    for notice in skipped:  # at once: what is wrong with the older one may follow from it
        show(notice)
    return share_checkpoint(world, checkpoint, source, run), source, skipped


def _resumed_settings(
    checkpoint: Checkpoint, horizon: Mapping[str, Any], changes: Mapping[str, Any], world: World
) -> Settings:
    """Return the settings of the resumed run: the main process's, with the place of the text here."""
    settings = replaced(with_horizon(checkpoint.settings, horizon), changes)
    if world.size > 1:
        settings = Settings.model_validate(world.share(settings.model_dump(mode="json")))
        settings = replaced(settings, {key: value for key, value in changes.items() if "source" in key})
    return changed(settings, data=absolute_sources(settings.data))


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
    world: World = SOLO,
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
        world=world,
    )
    require_same_weights(world, trainer.parts.model)
    reason = run_session(trainer, prepared.plan)
    return RunOutcome(run, reason, trainer.state.step, trainer.validator.overfitting.risen)


def tee(first: Listener, second: Listener) -> Listener:
    """Return a listener that passes every event to both."""

    def emit(event: Event) -> None:
        first(event)
        second(event)

    return emit
