"""Kills (-9) runs at random moments, resumes them, and compares with an undisturbed run.

A kill is aimed at a moment drawn evenly from the life of a process, its start and its end included. A run
is killed up to five times, then left to finish; then the next one begins. Most processes are forked from
one that has torch loaded already, which spares three seconds each; the others are started through the
command line, as a user does. POSIX only.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak import small
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.errors import CpulmError
from cpulm.run_dir import RunDir
from cpulm.runs import supervisor_state

KILLS_A_RUN = 5
GENERATIONS = "train.generations=3"
"""So that some kills hit the borders between generations."""


@dataclass
class Tally:
    """The results. The last five fields are faults, and should be zero or empty."""

    kills: int = 0
    runs: int = 0
    before_the_folder: int = 0
    before_the_first_checkpoint: int = 0
    getting_ready_to_resume: int = 0
    in_a_save: int = 0
    in_a_line_of_the_record: int = 0
    at_another_moment: int = 0
    unreadable: list[str] = field(default_factory=list)
    older_than_told: int = 0
    ended_badly: list[str] = field(default_factory=list)
    different_weights: int = 0
    wrong_records: int = 0

    @property
    def faults(self) -> int:
        """How often something was lost."""
        lists = len(self.unreadable) + len(self.ended_badly)
        return lists + self.older_than_told + self.different_weights + self.wrong_records


class Process:
    """A process that trains: forked from this one, or started by its command line."""

    def __init__(self, pid: int, wait: Callable[[bool], int | None], said: Path) -> None:
        self.pid = pid
        self._wait = wait
        self._said = said

    def ends_within(self, seconds: float) -> int | None:
        """Its exit code once it has ended; None if it still runs after ``seconds``."""
        until = time.monotonic() + seconds
        while (code := self._wait(False)) is None and time.monotonic() < until:
            time.sleep(0.001)
        return code

    def kill(self) -> None:
        """Kill it as the system does when memory runs out."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait(True)

    def last_words(self) -> str:
        """The end of its stderr."""
        return self._said.read_text(errors="replace")[-500:]


Begin = Callable[[RunDir, bool], Process]
"""Starts a process that trains in a folder, or resumes the run there."""


def kills(count: int, by_command: int, seed: int = 1) -> dict[str, Any]:
    """Kill ``count`` forked processes and ``by_command`` started ones; return the results of both."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small.own_cache(folder / "cache")
        text = small.write_text(folder)
        # From here on the tokens are cached, and all imports of a run are done before a fork.
        small.train(small.settings_for(text), folder / "first")
        result: dict[str, Any] = {}
        for kind, wanted, begin in (("forked", count, _fork(text)), ("by command", by_command, _start(text))):
            if wanted:
                began = time.monotonic()
                tally = _torment(folder / kind.replace(" ", "-"), begin, wanted, random.Random(seed))
                seconds = round(time.monotonic() - began, 1)
                result[kind] = {**asdict(tally), "faults": tally.faults, "seconds": seconds}
        return result


def _torment(folder: Path, begin: Begin, wanted: int, rng: random.Random) -> Tally:
    tally = Tally()
    calm = RunDir(folder / "calm")
    folder.mkdir()
    life = _life(begin(calm, False))
    course = small.course(calm.latest)
    while tally.kills < wanted:
        tally.runs += 1
        run = RunDir(folder / f"run-{tally.runs}")
        _kill_some(run, begin, min(KILLS_A_RUN, wanted - tally.kills), life, rng, tally)
        _finish(run, begin, course, calm, tally)
        shutil.rmtree(run.path)
        print(f"{tally.kills:,} of {wanted:,} kills, {tally.faults} faults", file=sys.stderr, flush=True)
    return tally


def _life(process: Process) -> float:
    began = time.monotonic()
    code = process.ends_within(120)
    if code != 0:
        raise SystemExit(f"the undisturbed run ended with {code}: {process.last_words()}")
    return time.monotonic() - began


def _kill_some(run: RunDir, begin: Begin, wanted: int, life: float, rng: random.Random, tally: Tally) -> None:
    """Kill the run's process repeatedly, or until one finishes before it is killed."""
    left = life
    for _ in range(wanted):
        resumed = bool(run.checkpoints())
        record = _record(run)
        process = begin(run, resumed)
        at = rng.uniform(0, left)
        code = process.ends_within(at)
        if code is not None:
            if not _is_well(code, process):
                tally.ended_badly.append(f"exit code {code}: {process.last_words()}")
            return
        process.kill()
        tally.kills += 1
        _look(run, resumed and _record(run) == record, tally)
        step = small.newest_step(run) or 0
        left = life * (1 - 0.5 * step / 24)  # the start takes as long each time


def _look(run: RunDir, was_getting_ready: bool, tally: Tally) -> None:
    """What the kill interrupted, and whether everything reported as saved exists."""
    record = _record(run)
    if not run.path.is_dir():
        tally.before_the_folder += 1
    elif list(run.path.glob(".*.tmp")):
        tally.in_a_save += 1
    elif record and not record.endswith(b"\n"):
        tally.in_a_line_of_the_record += 1
    elif not run.checkpoints():
        tally.before_the_first_checkpoint += 1
    elif was_getting_ready:
        tally.getting_ready_to_resume += 1
    else:
        tally.at_another_moment += 1
    tally.unreadable += small.unreadable(run)
    told = supervisor_state.checkpoint_step(run)
    if told is not None and told > max(
        (checkpoints.load(path).step for path in run.checkpoints()), default=-1
    ):
        tally.older_than_told += 1


def _is_well(code: int | None, process: Process) -> bool:
    """Finished, or killed after its last checkpoint with nothing left to do."""
    return code == 0 or (code == 2 and "is already finished" in process.last_words())


def _record(run: RunDir) -> bytes:
    return run.metrics.read_bytes() if run.metrics.is_file() else b""


def _finish(run: RunDir, begin: Begin, course: dict[str, Any], calm: RunDir, tally: Tally) -> None:
    """Finish the run and compare it with the undisturbed one."""
    process = begin(run, bool(run.checkpoints()))
    code = process.ends_within(120)
    if not _is_well(code, process):
        tally.ended_badly.append(f"exit code {code}: {process.last_words()}")
        return
    tally.different_weights += not small.equal(small.course(run.latest), course)
    tally.wrong_records += small.recorded_steps(run) != small.recorded_steps(calm)


def _fork(text: Path) -> Begin:
    settings = small.settings_for(text, GENERATIONS)

    def begin(run: RunDir, resume: bool) -> Process:
        said = run.path.parent / "said.txt"
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with said.open("w") as file:
                    os.dup2(file.fileno(), 2)
                _ = small.resume(run.path) if resume else small.train(settings, run.path)
                code = 0
            except CpulmError as error:
                os.write(2, error.message.encode())
                code = error.exit_code
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)

        def wait(patiently: bool) -> int | None:
            done, status = os.waitpid(pid, 0 if patiently else os.WNOHANG)
            return os.waitstatus_to_exitcode(status) if done else None

        return Process(pid, wait, said)

    return begin


def _start(text: Path) -> Begin:
    new = [f"--set={assignment}" for assignment in small.assignments(text, GENERATIONS)]

    def begin(run: RunDir, resume: bool) -> Process:
        said = run.path.parent / "said.txt"
        options = ["resume", str(run.path)] if resume else ["train", "--out", str(run.path), *new]
        command = [sys.executable, "-m", "cpulm", *options, "--headless"]
        with said.open("w") as file:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)

        def wait(patiently: bool) -> int | None:
            return process.wait() if patiently else process.poll()

        return Process(process.pid, wait, said)

    return begin


def told(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    lines = []
    for kind, tally in result.items():
        lines.append(
            f"{tally['kills']} kills of {tally['runs']} runs ({kind}, {tally['seconds']:.0f} s), of which"
        )
        lines += [
            f"  {number:>5} {name.replace('_', ' ')}"
            for name, number in tally.items()
            if isinstance(number, int) and name not in ("kills", "runs", "faults")
        ]
        for name in ("unreadable", "ended_badly"):
            lines.append(f"  {len(tally[name]):>5} {name.replace('_', ' ')}")
            lines += [f"        {said}" for said in tally[name]]
    return lines
