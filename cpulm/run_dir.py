"""All paths inside a run's folder, and the creation of such a folder."""

from __future__ import annotations

import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cpulm.errors import DataError, SettingsError
from cpulm.events import StepDone, line_start

_NUMBERED = re.compile(r"step-(\d{8,})\.pt")
_TEACHER = re.compile(r"teacher-[0-9a-f]{8}\.pt")
_TEMPORARY = re.compile(r"\..*\.tmp")


@dataclass(frozen=True)
class RunDir:
    """The folder of one run; knows the names of its files, not their contents."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's own name, also if ``path`` is ``.``."""
        return self.path.name or self.path.resolve().name

    @property
    def settings(self) -> Path:
        """The resolved settings, YAML, ready for ``--config``."""
        return self.path / "settings.yaml"

    @property
    def metrics(self) -> Path:
        """One event per line, JSON."""
        return self.path / "metrics.jsonl"

    @property
    def latest(self) -> Path:
        """The newest checkpoint."""
        return self.path / "latest.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.path / "best.pt"

    @property
    def adapter(self) -> Path:
        """The folder of the best model's adapters, in PEFT's layout, if the run trains adapters."""
        return self.path / "adapter"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def lock(self) -> Path:
        """The lock of the process that trains here; empty while none does."""
        return self.path / "lock"

    @property
    def stop(self) -> Path:
        """Exists once somebody has requested the run to stop."""
        return self.path / "stop"

    @property
    def overnight(self) -> Path:
        """The state of the night's supervisor, JSON."""
        return self.path / "overnight.json"

    @property
    def report(self) -> Path:
        """The run's report page for a browser."""
        return self.path / "report.html"

    @property
    def label(self) -> Path:
        """The name and the note that the run's owner gave it, JSON."""
        return self.path / "label.json"

    @property
    def summary(self) -> Path:
        """The summary of a night, Markdown."""
        return self.path / "summary.md"

    @property
    def supervisor_log(self) -> Path:
        """What the night's supervisor and its processes said."""
        return self.path / "overnight.log"

    def wrote(self, name: str) -> bool:
        """Whether cpulm writes files of this name into a run's folder."""
        if _TEMPORARY.fullmatch(name) or _NUMBERED.fullmatch(name) or _TEACHER.fullmatch(name):
            return True
        own = (self.settings, self.metrics, self.latest, self.best, self.adapter, self.lock, self.stop)
        night = (self.overnight, self.supervisor_log, self.summary)
        views = (self.report, self.label, self.tensorboard)
        names = {path.name for path in (*own, *night, *views)}
        return name in names or name == f"{self.supervisor_log.name}.1"

    def teacher(self, digest: str) -> Path:
        """The weights of a model that teaches the run's model, in a checkpoint file named by their digest."""
        return self.path / f"teacher-{digest[:8]}.pt"

    def numbered(self, step: int) -> Path:
        """The checkpoint of one step."""
        return self.path / f"step-{step:08d}.pt"

    def numbered_steps(self) -> list[int]:
        """Steps with a numbered checkpoint, oldest first."""
        files = self.path.glob("step-*.pt")
        steps = {int(match.group(1)) for file in files if (match := _NUMBERED.fullmatch(file.name))}
        return sorted(step for step in steps if self.numbered(step).is_file())

    def numbered_checkpoints(self) -> list[Path]:
        """Numbered checkpoints in the order in which they were written: after a resume from an older one, the
        steps begin again."""
        return sorted(map(self.numbered, self.numbered_steps()), key=_written)

    def checkpoints(self) -> list[Path]:
        """Checkpoints that exist, ``latest.pt`` first, then the most recent ones."""
        others = [path for path in (*map(self.numbered, self.numbered_steps()), self.best) if path.is_file()]
        others.sort(key=_written, reverse=True)
        return [self.latest, *others] if self.latest.is_file() else others


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # deleted meanwhile
        return 0


def disk_bytes(path: Path) -> int:
    """The size of a file, or of all files below a folder; links are not followed."""
    total = 0
    with suppress(OSError):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            return found.st_size
        for inside in path.iterdir():
            total += disk_bytes(inside)
    return total


def check_free(out: Path) -> None:
    """Raise SettingsError if ``out`` exists and is not a folder without work in it."""
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is a file", "choose another --out: a run is a folder")
    if out.exists() and not _holds_no_work(out):
        raise SettingsError(
            f"{out} exists and is not empty",
            "choose another --out, or continue that run: --resume",
        )


def create(out: Path | None, stem: str) -> RunDir:
    """Create the folder of a new run.

    Args:
        out: the folder the user named, or None for the first free ``runs/<stem>-<n>``.
        stem: the beginning of the run's name: its preset.

    Raises:
        SettingsError: if ``out`` already holds something, which is left unchanged, or if the folder cannot be
            created.
    """
    try:
        return RunDir(_first_free(stem) if out is None else _empty(out))
    except OSError as error:
        raise SettingsError(
            f"cannot create the run's folder {error.filename}: {error.strerror}",
            "choose another place: --out DIR",
        ) from error


def _first_free(stem: str) -> Path:
    """``mkdir`` is the lock: two runs that start at the same time get different numbers."""
    clean = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    number = 1
    while True:
        try:
            path = runs / f"{clean}-{number}"
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def _empty(out: Path) -> Path:
    check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _holds_no_work(out: Path) -> bool:
    """Whether a folder is empty, or holds only files of a run killed before its first checkpoint."""
    run = RunDir(out)
    names = {path.name for path in out.iterdir() if not path.name.endswith(".tmp")}
    traces = {path.name for path in (run.lock, run.settings, run.stop, run.metrics)}
    if names and (run.lock.name not in names or not names <= traces):
        return False
    return not run.metrics.is_file() or line_start(StepDone) not in run.metrics.read_bytes()


def find(path: Path) -> RunDir:
    """Return the run that ``path`` names: its folder, or any file directly in it.

    Raises:
        DataError: if there is no such run.
    """
    folder = path if path.is_dir() else path.parent
    run = RunDir(folder)
    if not path.exists():
        raise DataError(f"{path} does not exist", "give a run's folder, such as runs/tiny-1")
    if not run.checkpoints() and not run.settings.is_file():
        raise DataError(f"{path} is not a cpulm run", "a run's folder holds settings.yaml and latest.pt")
    return run
