"""The plan of a sweep, and its folder.

``sweep.yaml`` is written last: a folder that has it holds all settings of all trials under ``trials/``. Each
trial is a run's folder beside it. The state of the sweep is in the logs of its runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpulm.atomic import write_text
from cpulm.errors import DataError, SettingsError
from cpulm.run_dir import RunDir
from cpulm.settings import Settings, settings_yaml
from cpulm.settings.resolve_settings import resolve
from cpulm.sweep.halving import Rung
from cpulm.typed_json import from_record
from cpulm.yaml_file import read_yaml, to_yaml

PLAN = "sweep.yaml"
_FORMAT_VERSION = 1
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: the name of its folder.
        steps: its horizon in updates; None if it is a time.
        rungs: the updates at which it is compared with the others.
    """

    name: str
    steps: int | None
    rungs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What to try, and how.

    Attributes:
        directory: the folder that relative paths in the settings refer to.
        keys: the settings that differ.
        parallel: number of concurrent runs.
        keep: how many trials continue after each rung; empty without halving.
    """

    directory: str
    keys: tuple[str, ...]
    parallel: int
    keep: tuple[int, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class SweepDir:
    """The folder of a sweep; knows its files by name."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / PLAN

    def run(self, trial: Trial) -> RunDir:
        """The folder of a trial's run."""
        return RunDir(self.path / trial.name)

    def settings(self, trial: Trial) -> Path:
        """All settings of a trial, for ``--config``."""
        return self.path / "trials" / f"{trial.name}.yaml"

    def log(self, trial: Trial) -> Path:
        """The output of the trial's processes."""
        return self.path / "trials" / f"{trial.name}.log"


def trial_names(keys: Sequence[str], combinations: Sequence[Sequence[str]]) -> list[str]:
    """``lr=0.002-n_layer=4`` for each combination: distinct folder names, valid on every system."""
    names: list[str] = []
    taken: set[str] = set()
    for values in combinations:
        words = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in zip(keys, values, strict=True))
        clean = re.sub(r"[^\w.=+-]+", "_", words)[:_LONGEST_NAME].rstrip(". ")
        name, number = clean, 1
        while name.lower() in taken:  # some file systems ignore case
            number += 1
            name = f"{clean}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def keep_of(looks: Sequence[Rung]) -> tuple[int, ...]:
    """How many trials continue after each rung."""
    return tuple(look.keep for look in looks)


def write_plan(folder: SweepDir, plan: Plan, settings: Sequence[Settings]) -> None:
    """Write all files of a new sweep, the plan itself last.

    Raises:
        SettingsError: if the folder cannot be written.
        ResourceError: if the disk is full.
    """
    try:
        (folder.path / "trials").mkdir(parents=True, exist_ok=True)
        for trial, one in zip(plan.trials, settings, strict=True):
            write_text(folder.settings(trial), settings_yaml(one))
        write_text(folder.plan, _text_of(plan))
    except OSError as error:
        raise SettingsError(
            f"cannot write the sweep in {folder.path}: {error.strerror}", "choose another place: --out DIR"
        ) from error


def read_plan(folder: SweepDir) -> Plan:
    """Read the plan in a sweep's folder.

    Raises:
        DataError: if there is none, or it cannot be read.
    """
    if not folder.plan.is_file():
        why = f"it has no {PLAN}" if folder.path.is_dir() else "there is no such folder"
        raise DataError(
            f"{folder.path} is not a sweep: {why}", "give a sweep's folder, such as sweeps/tiny-1"
        )
    try:
        record = read_yaml(folder.plan)
        if record.get("format_version") != _FORMAT_VERSION:
            raise ValueError(f"format version {record.get('format_version')!r}")
        plan = from_record(Plan, record)
    except (SettingsError, ValueError) as error:
        raise DataError(f"{folder.plan} cannot be read: {error}", "start another sweep") from error
    if not plan.trials:
        raise DataError(f"{folder.plan} has no trials", "start another sweep")
    return plan


def read_settings(folder: SweepDir, trial: Trial) -> Settings:
    """Read all settings of a trial.

    Raises:
        SettingsError: if they cannot be read.
    """
    return resolve(config=folder.settings(trial))


def is_same(folder: SweepDir, plan: Plan, settings: Sequence[Settings]) -> bool:
    """Whether the folder holds the same sweep."""
    try:
        if read_plan(folder) != plan:
            return False
        return all(
            read_settings(folder, trial) == one for trial, one in zip(plan.trials, settings, strict=True)
        )
    except (DataError, SettingsError):
        return False


def _text_of(plan: Plan) -> str:
    record: dict[str, Any] = {"format_version": _FORMAT_VERSION, **_plain(asdict(plan))}
    return to_yaml(record)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
