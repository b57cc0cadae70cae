"""Reads the status of a run from its log and its lock alone: neither torch nor a checkpoint is needed.

The log of a long run has a million lines. Only its two ends are read, and if the best validation is further
back, the bytes between are searched for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpulm.errors import DataError
from cpulm.events import COMPLETE, EndReason, Event, RunFinished, RunStarted, StepDone, Validated
from cpulm.run_dir import RunDir, disk_bytes
from cpulm.runlog.find_event import first_event, last_event, run_end
from cpulm.runs import supervisor_state
from cpulm.runs.label import read_label
from cpulm.runs.lock import Holder, holder
from cpulm.runs.run_states import END_STATES, RunState
from cpulm.system import process

_SILENT_SECONDS = 600.0
"""A run on another machine counts as dead if its log has not grown for so long: it is sampled every 2 s."""


@dataclass(frozen=True)
class RunStatus:
    """The status of a run. Times are in seconds since the epoch, losses in nats per token.

    ``state`` is ``running``, ``restarting`` (between two tries of a supervisor), ``finished``, ``stopped``,
    ``diverged``, ``out of room``, ``failed``, ``crashed`` or ``new``; ``reason`` is why the run ended, if it
    has ended. ``generation`` is the one that the newest step belongs to. ``pid`` and ``host`` are of the
    process that trains. ``label`` and ``note`` are what its owner calls it.
    """

    run: str
    name: str
    state: RunState
    reason: EndReason | None = None
    preset: str | None = None
    params_total: int | None = None
    step: int | None = None
    steps: int | None = None
    max_time_seconds: float | None = None
    progress: float | None = None
    generation: int = 1
    generations: int = 1
    tokens: int | None = None
    loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    best_bits_per_byte: float | None = None
    text_lost: float = 0.0
    elapsed_seconds: float | None = None
    tokens_per_second: float | None = None
    began: float | None = None
    seen: float | None = None
    pid: int | None = None
    host: str | None = None
    disk_bytes: int = 0
    label: str = ""
    note: str = ""


def find_runs(folders: Iterable[Path]) -> list[RunDir]:
    """Return the runs in ``folders``, or those folders themselves if they are runs.

    Raises:
        DataError: a folder does not exist.
    """
    found: dict[Path, RunDir] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"{folder} is not a folder",
                "give a folder of runs, such as runs, or a run's folder, such as runs/tiny-1",
            )
        inside = [folder] if is_run(RunDir(folder)) else sorted(folder.iterdir())
        for path in inside:
            if path.is_dir() and is_run(RunDir(path)):
                found.setdefault(path.resolve(), RunDir(path))
    return list(found.values())


def is_run(run: RunDir) -> bool:
    """Whether a run has begun in the folder."""
    return run.settings.is_file() or run.metrics.is_file() or run.latest.is_file()


def status_of(run: RunDir) -> RunStatus:
    """Return the status of the run. Damaged lines of its log are ignored."""
    end = run_end(run.metrics)
    found = _from_log(run.metrics, end)
    trainer = trainer_of(run)
    if trainer is not None:
        found.update(pid=trainer.pid, host=trainer.host, reason=None)
    state = _state(end, trainer, began="began" in found, restarting=is_supervised(run))
    label = read_label(run)
    found.update(disk_bytes=disk_bytes(run.path), label=label.name, note=label.note)
    return RunStatus(run=str(run.path), name=run.name, state=state, **found)


def trainer_of(run: RunDir) -> Holder | None:
    """Return the living process that trains in the folder; another machine's as long as its log grows."""
    found = holder(run)
    if found is None or not found.alive:
        return None
    if found.here:
        return found
    last = last_event(run.metrics, Event)
    seen = max(found.since, last.time if last else 0.0)
    return found if time.time() - seen < _SILENT_SECONDS else None


def is_at_work(run: RunDir) -> bool:
    """Whether a process trains the run, or is about to do so again."""
    return trainer_of(run) is not None or is_supervised(run)


def processes_of(run: RunDir) -> list[int]:
    """Numbers of the processes of this machine that train the run or supervise it."""
    trains, night = trainer_of(run), supervisor_state.read(run)
    pids = [trains.pid] if trains is not None and process.is_running(trains.pid, trains.started) else []
    return [*pids, night.pid] if night is not None and night.is_watched() else pids


def is_complete(run: RunDir) -> bool:
    """Whether the record's last word is that the run came to its end; False if it was killed before that."""
    end = run_end(run.metrics)
    return end is not None and end.reason in COMPLETE


def is_supervised(run: RunDir) -> bool:
    """Whether a living supervisor will start the run again after a crash."""
    night = supervisor_state.read(run)
    return night is not None and night.is_watched() and night.state not in supervisor_state.ENDED


def _state(end: RunFinished | None, trainer: Holder | None, *, began: bool, restarting: bool) -> RunState:
    if trainer is not None:
        return "running"
    if restarting:
        return "restarting"
    if end is not None:
        return END_STATES[end.reason]
    return "crashed" if began else "new"


def _from_log(metrics: Path, end: RunFinished | None) -> dict[str, Any]:
    """Return what the log says, by the names of :class:`RunStatus`."""
    found: dict[str, Any] = {}
    last, step = last_event(metrics, Event), last_event(metrics, StepDone)
    started = _started(metrics, step)
    if last is not None:
        found["seen"] = last.time
    if started is not None:
        first = first_event(metrics, RunStarted) or started
        found.update(
            began=first.time,
            preset=None if started.preset == "none" else started.preset,
            **_values(started, "params_total", "step", "steps", "max_time_seconds"),
            **_values(started, "generation", "generations"),
        )
    if step is not None:
        found.update(_values(step, "step", "progress", "tokens", "loss", "elapsed_seconds", "generation"))
    if end is not None:
        found.update(_values(end, "reason", "step", "tokens", "elapsed_seconds", "tokens_per_second"))
        found.update(_values(end, "best_loss", "best_step", "best_bits_per_byte", "text_lost"))
    elif best := last_event(metrics, Validated, where=lambda validated: validated.best):
        found.update(best_loss=best.loss, best_step=best.step, best_bits_per_byte=best.bits_per_byte)
        found["text_lost"] = best.text_lost
    return found


def _values(event: Event, *names: str) -> dict[str, Any]:
    return {name: getattr(event, name) for name in names}


def _started(metrics: Path, step: StepDone | None) -> RunStarted | None:
    """Return the newest RunStarted: the first one, unless a resumed run was given a new horizon."""
    first = first_event(metrics, RunStarted)
    if first is not None and step is not None and _agree(first, step):
        return first
    return last_event(metrics, RunStarted) or first


def _agree(started: RunStarted, step: StepDone) -> bool:
    """Whether the step's progress is that on the way to the horizon in ``started``."""
    if started.steps is not None:
        return abs(step.step - step.progress * started.steps) <= 1e-6 * step.step
    if started.max_time_seconds is not None:
        # The end of a time horizon is kept for the last checkpoint, so progress runs a little ahead.
        planned = step.progress * started.max_time_seconds
        return 0.9 * planned <= step.elapsed_seconds <= planned
    return False
