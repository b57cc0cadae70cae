"""Fills the disk of a run at random moments, makes its folder read-only, and deletes it.

The run writes to a file system of its own of a few megabytes in memory (tmpfs), which takes root, or on
Linux a name space where you are: ``unshare -Urm python -m benchmarks.soak disk``. A file fills it up to a
random number of free bytes after a random step; in half of the cases it goes away some steps later. Where
the disk stays full the run ends, room is made, and the run is resumed.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak import small
from benchmarks.soak.counted import counted
from cpulm.errors import ResourceError
from cpulm.events import CheckpointSaved, Event, Notice
from cpulm.run_dir import RunDir
from cpulm.training import checkpointer

SIZE_BYTES = 4 * 2**20
LAST_TRIES_SECONDS = 1.0
"""Instead of a minute: the wait for disk space at the end of a run, which never comes here."""


@dataclass
class Tally:
    """The results. The last four fields are faults, and should be zero or empty."""

    cases: int = 0
    warned: int = 0
    went_on_by_itself: int = 0
    ended_for_want_of_room: int = 0
    lost_a_saved_checkpoint: int = 0
    ended_badly: list[str] = field(default_factory=list)
    different_weights: int = 0
    wrong_records: int = 0

    @property
    def faults(self) -> int:
        """How often something was lost."""
        return (
            self.lost_a_saved_checkpoint + len(self.ended_badly) + self.different_weights + self.wrong_records
        )


def disk(count: int, seed: int = 1) -> dict[str, Any]:
    """Fill the disk ``count`` times, and a tenth as often make the folder read-only or delete it."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    before, checkpointer.LAST_TRIES_SECONDS = checkpointer.LAST_TRIES_SECONDS, LAST_TRIES_SECONDS
    try:
        with tempfile.TemporaryDirectory() as name, _small_disk(Path(name) / "disk") as place:
            folder = Path(name)
            small.own_cache(folder / "cache")
            trial = _Trial(folder, place, rng)
            return {
                kind: {**asdict(tally), "faults": tally.faults}
                for kind, tally in (
                    ("full disk", trial.all(trial.full, count)),
                    ("folder read-only", trial.all(trial.read_only, -(-count // 10))),
                    ("folder deleted", trial.all(trial.deleted, -(-count // 10))),
                )
            }
    finally:
        checkpointer.LAST_TRIES_SECONDS = before


class _Trial:
    """Runs on the small disk, each compared with the same undisturbed one."""

    def __init__(self, folder: Path, place: Path, rng: random.Random) -> None:
        self._settings = small.settings_for(small.write_text(folder), "checkpoint.every_steps=3")
        self._calm = RunDir(folder / "calm")
        small.train(self._settings, self._calm.path)
        self._course = small.course(self._calm.latest)
        self._place, self._rng = place, rng
        self._run = RunDir(place / "run")
        self._ballast = place / "ballast"

    def all(self, torment: Callable[[Tally], None], count: int) -> Tally:
        tally = Tally()
        for _ in counted("disk", count):
            tally.cases += 1
            torment(tally)
            self._ballast.unlink(missing_ok=True)
            shutil.rmtree(self._run.path, ignore_errors=True)
        return tally

    def full(self, tally: Tally) -> None:
        """Fill the disk, to any degree, after any step; half of the time free it later."""
        checkpoint = self._calm.latest.stat().st_size
        free = self._rng.choice([0, self._rng.randrange(2 * checkpoint)])
        self._disturb(tally, lambda: self._fill(free), lambda: self._ballast.unlink(missing_ok=True))

    def read_only(self, tally: Tally) -> None:
        """Make the folder read-only suddenly, as a disk with errors does: by a bind mount."""
        place = str(self._run.path)

        def begin() -> None:
            _call("mount", "--bind", place, place)
            _call("mount", "-o", "remount,bind,ro", place)

        self._disturb(tally, begin, lambda: _call("umount", "--lazy", place))

    def deleted(self, tally: Tally) -> None:
        """Delete the folder."""
        self._disturb(tally, lambda: shutil.rmtree(self._run.path), lambda: None, keeps_files=False)

    def _disturb(
        self, tally: Tally, begin: Callable[[], None], end: Callable[[], None], *, keeps_files: bool = True
    ) -> None:
        seen: list[Event] = []
        at = self._rng.randrange(1, 25)
        until = at + self._rng.randrange(1, 6)
        over = [False]

        def end_once() -> None:
            if not over[0]:
                over[0] = True
                end()

        what = {at: begin, **({until: end_once} if self._rng.random() < 0.5 else {})}
        try:
            small.train(self._settings, self._run.path, small.at_steps(what, seen))
            tally.went_on_by_itself += 1
        except ResourceError:
            tally.ended_for_want_of_room += 1
        except Exception as error:
            tally.ended_badly.append(f"after step {at}: {type(error).__name__}: {error}")
        tally.warned += any(isinstance(event, Notice) and event.level == "warning" for event in seen)
        saved = [
            event.step for event in seen if isinstance(event, CheckpointSaved) and event.role == "latest"
        ]
        if keeps_files and (
            (small.newest_step(self._run) or 0) < max(saved, default=0) or small.unreadable(self._run)
        ):
            tally.lost_a_saved_checkpoint += 1
        end_once()
        self._finish(tally, whole_record=keeps_files)

    def _finish(self, tally: Tally, *, whole_record: bool) -> None:
        """Resume the run if it has not reached its end, and compare."""
        try:
            if (small.newest_step(self._run) or 0) < 24:
                small.resume(self._run.path)
        except Exception as error:
            tally.ended_badly.append(f"resumed: {type(error).__name__}: {error}")
            return
        tally.different_weights += not small.equal(small.course(self._run.latest), self._course)
        if whole_record:
            tally.wrong_records += small.recorded_steps(self._run) != small.recorded_steps(self._calm)

    def _fill(self, free: int) -> None:
        """Write until no more than ``free`` bytes are left."""
        room = shutil.disk_usage(self._place).free - free
        with self._ballast.open("wb", buffering=0) as file:
            file.write(bytes(max(0, room)))


@contextmanager
def _small_disk(place: Path) -> Iterator[Path]:
    """A tmpfs of :data:`SIZE_BYTES` at ``place``; SystemExit if that is not allowed."""
    place.mkdir()
    try:
        _call("mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(place))
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            "this trial mounts a small file system, which takes Linux and root; "
            "without root: unshare -Urm python -m benchmarks.soak disk"
        ) from None
    try:
        yield place
    finally:
        _call("umount", "--lazy", str(place))


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def told(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    lines = []
    for kind, tally in result.items():
        lines.append(f"{kind}: {tally['cases']} cases, of which")
        for name, value in tally.items():
            if name not in ("cases", "faults"):
                number = len(value) if isinstance(value, list) else value
                lines.append(f"  {number:>5} {name.replace('_', ' ')}")
                lines += [f"        {said}" for said in (value if isinstance(value, list) else [])]
    return lines
