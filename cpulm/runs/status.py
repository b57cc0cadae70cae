"""What became of a run, told by its record and its lock alone: neither torch nor a checkpoint is needed.

The record of a long night has a million lines. Only its ends are read; where the best validation lies
further back, the bytes between are searched for its mark, which takes a tenth of a second for 200 MB.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cpulm.errors import DataError
from cpulm.events import is_sound
from cpulm.run_dir import RunDir
from cpulm.runs import supervisor_state
from cpulm.runs.lock import Holder, holder
from cpulm.runs.run_states import END_STATES, RunState
from cpulm.system import process

_BLOCK_BYTES = 2**18
_HEAD_BYTES = 2**16
_STRIDE_BYTES = 2**12
_LAST_WORD_BYTES = 2**20
"""The end of a run is its last line; no text of a sample or a notice behind it is longer than this."""
_SILENT_SECONDS = 600.0
"""A run of another machine that has said nothing for so long is taken for dead: it samples every 2 s."""

Record = dict[str, Any]


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. Times are in seconds since the epoch, losses in nats per token.

    ``reason`` is why the run ended, if it has ended. ``pid`` and ``host`` are of the process that trains.
    """

    run: str
    name: str
    state: RunState
    reason: str | None = None
    preset: str | None = None
    params_total: int | None = None
    step: int | None = None
    steps: int | None = None
    max_time_seconds: float | None = None
    progress: float | None = None
    tokens: int | None = None
    loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    best_bits_per_byte: float | None = None
    elapsed_seconds: float | None = None
    tokens_per_second: float | None = None
    began: float | None = None
    seen: float | None = None
    pid: int | None = None
    host: str | None = None


def find_runs(folders: Iterable[Path]) -> list[RunDir]:
    """The runs in ``folders``, or those folders themselves where they are runs.

    Raises:
        DataError: where a folder does not exist.
    """
    found: dict[Path, RunDir] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder", "give a folder of runs, such as runs, or a run's own")
        inside = [folder] if is_run(RunDir(folder)) else sorted(folder.iterdir())
        for path in inside:
            if path.is_dir() and is_run(RunDir(path)):
                found.setdefault(path.resolve(), RunDir(path))
    return list(found.values())


def is_run(run: RunDir) -> bool:
    """Whether a run has begun in the folder."""
    return run.settings.is_file() or run.metrics.is_file() or run.latest.is_file()


def status_of(run: RunDir) -> RunStatus:
    """Where the run stands. Damaged lines are passed over, as if they were not there."""
    facts: Record = {}
    try:
        with run.metrics.open("rb") as file:
            facts = _facts(file)
    except OSError:
        pass
    trains = trainer_of(run)
    state = _state(facts.pop("finished", None), trains, begun="began" in facts, restarting=is_supervised(run))
    if trains is not None:
        facts.update(pid=trains.pid, host=trains.host, reason=None)
    return RunStatus(run=str(run.path), name=run.name, state=state, **facts)


def trainer_of(run: RunDir) -> Holder | None:
    """The living process that trains in the folder; another machine's as long as its record grows."""
    found = holder(run)
    if found is None or not found.alive:
        return None
    if found.here:
        return found
    last = _last_heard(run) or {}
    return found if time.time() - max(found.since, last.get("time", 0.0)) < _SILENT_SECONDS else None


def _last_heard(run: RunDir) -> Record | None:
    """The last event in the record."""
    try:
        with run.metrics.open("rb") as file:
            return _last_event(file)
    except OSError:
        return None


def is_at_work(run: RunDir) -> bool:
    """Whether somebody trains the run, or is about to do so again."""
    return trainer_of(run) is not None or is_supervised(run)


def processes_of(run: RunDir) -> list[int]:
    """Numbers of the processes of this machine that train the run or supervise it."""
    trains, night = trainer_of(run), supervisor_state.read(run)
    pids = [trains.pid] if trains is not None and process.is_running(trains.pid, trains.started) else []
    return [*pids, night.pid] if night is not None and night.is_watched() else pids


def is_supervised(run: RunDir) -> bool:
    """Whether a living supervisor will start the run again after a crash."""
    night = supervisor_state.read(run)
    return night is not None and night.is_watched() and night.state not in supervisor_state.ENDED


def _state(finished: str | None, trains: Holder | None, *, begun: bool, restarting: bool) -> RunState:
    if trains is not None:
        return "running"
    if restarting:
        return "restarting"
    if finished is not None:
        return END_STATES.get(finished, "finished")
    return "crashed" if begun else "new"


def _facts(file: BinaryIO) -> Record:
    """What the record tells, by the names of :class:`RunStatus`; its end's reason as ``finished``."""
    facts: Record = {}
    last = _last_event(file)
    step = _last(
        file,
        b'"event":"step"',
        lambda record: _has_numbers(record, "step", "progress", "elapsed_seconds"),
    )
    finished = _last_word(file)
    started = _started(file, step)
    if last is not None:
        facts["seen"] = last["time"]
    if started is not None:
        facts["began"] = _began(file, started)
        for name in ("preset", "params_total", "step", "steps", "max_time_seconds"):
            facts[name] = started.get(name)
        if facts["preset"] == "none":
            facts["preset"] = None
    if step is not None:
        for name in ("step", "progress", "tokens", "loss", "elapsed_seconds"):
            facts[name] = step.get(name)
    if finished is not None:
        facts["reason"] = facts["finished"] = finished["reason"]
        for name in ("step", "tokens", "elapsed_seconds", "tokens_per_second"):
            facts[name] = finished.get(name)
    return {**facts, **_best(file, finished)}


def _last_event(file: BinaryIO) -> Record | None:
    return _last(file, b'"event":', lambda record: _has_numbers(record, "time"))


def _last_word(file: BinaryIO) -> Record | None:
    """The last line where it is the end of the run: a resumed run has gone on since."""
    last = _last(file, b'"event":"run_', _is_whole, within=_LAST_WORD_BYTES)
    if last is None or last["event"] != "run_finished" or not isinstance(last.get("reason"), str):
        return None
    return last


def _started(file: BinaryIO, step: Record | None) -> Record | None:
    """The newest ``run_started``. It is the first one, unless a resumed run was given a new horizon."""
    first = _first(file, "run_started")
    if first is not None and step is not None and _agree(first, step):
        return first
    return _last(file, b'"event":"run_started"', _is_whole) or first


def _agree(started: Record, step: Record) -> bool:
    """Whether the step's progress is that on the way to the horizon in ``started``."""
    done, elapsed, progress = (float(step[name]) for name in ("step", "elapsed_seconds", "progress"))
    if _has_numbers(started, "steps"):
        return abs(done - progress * float(started["steps"])) <= 1e-6 * done
    if _has_numbers(started, "max_time_seconds"):
        # The end of a time horizon is kept for the last checkpoint, so progress runs a little ahead.
        planned = progress * float(started["max_time_seconds"])
        return 0.9 * planned <= elapsed <= planned
    return False


def _began(file: BinaryIO, started: Record) -> float | None:
    first = _first(file, "run_started") or started
    return first["time"] if _has_numbers(first, "time") else None


def _best(file: BinaryIO, finished: Record | None) -> Record:
    """The best validation: the end of the run names it, otherwise the last one with the mark is it."""
    if finished is not None:
        return {name: finished.get(name) for name in ("best_loss", "best_step", "best_bits_per_byte")}
    best = _last(file, b'"best":true', lambda record: record["event"] == "validated")
    if best is None:
        return {}
    names = {"best_loss": "loss", "best_step": "step", "best_bits_per_byte": "bits_per_byte"}
    return {name: best.get(key) for name, key in names.items()}


def _first(file: BinaryIO, kind: str) -> Record | None:
    """The first event of a kind, as far as it is in the first lines."""
    file.seek(0)
    for line in file.read(_HEAD_BYTES).split(b"\n")[:-1]:
        record = _record(line)
        if record is not None and record["event"] == kind:
            return record
    return None


def _last(
    file: BinaryIO, mark: bytes, fits: Callable[[Record], bool], *, within: int | None = None
) -> Record | None:
    """The last event whose line holds ``mark`` and that ``fits``.

    Inside of JSON's strings quotes are escaped, so a mark with quotes is never found in a text.

    Args:
        within: how many bytes to search, from the end; None for all.
    """
    for line in _lines_with(file, mark, within):
        record = _record(line)
        if record is not None and fits(record):
            return record
    return None


def _lines_with(file: BinaryIO, mark: bytes, within: int | None) -> Iterator[bytes]:
    """Whole lines that hold ``mark``, the last one first. What follows the last line end is no line."""
    size = file.seek(0, os.SEEK_END)
    stop = 0 if within is None else max(0, size - within)
    end = size
    while end > stop:
        begin = max(stop, end - _BLOCK_BYTES)
        file.seek(begin)
        at = file.read(end - begin).rfind(mark)
        if at < 0:
            # The mark may lie across the border of two blocks.
            end = begin + len(mark) - 1 if begin > stop else stop
            continue
        end = _begin_of_line(file, begin + at)
        file.seek(end)
        line = file.readline()
        if line.endswith(b"\n"):
            yield line


def _begin_of_line(file: BinaryIO, at: int) -> int:
    """The place of the first byte of the line that holds the byte ``at``."""
    while at > 0:
        begin = max(0, at - _STRIDE_BYTES)
        file.seek(begin)
        found = file.read(at - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        at = begin
    return 0


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if is_sound(record) else None


def _is_whole(_record: Record) -> bool:
    """Any event will do."""
    return True


def _has_numbers(record: Record, *names: str) -> bool:
    return all(isinstance(record.get(name), (int, float)) for name in names)
