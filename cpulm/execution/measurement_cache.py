"""Times and their ratios that were measured on this machine, remembered from one process to the next."""

from __future__ import annotations

import json
import math
from pathlib import Path

from cpulm.atomic import write_text
from cpulm.cache_dir import cache_folder
from cpulm.errors import ResourceError

MOST = 64
"""Numbers kept: the newest."""


def remembered_precisions() -> Ratios:
    """Those of int8 to fp32, in this machine's cache."""
    return Ratios(cache_folder() / "int8-ratios.json")


def remembered_threads() -> Ratios:
    """Those of one number of threads to another, in this machine's cache."""
    return Ratios(cache_folder() / "thread-ratios.json")


def remembered_compiling() -> Ratios:
    """What torch.compile cost and gained, see :class:`cpulm.execution.runtime.CompileTimes`."""
    return Ratios(cache_folder() / "compile-times.json")


class Ratios:
    """Positive numbers by key in a JSON file; a file that is no such thing is as good as none.

    Args:
        path: of the file; it and its folder need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, key: str) -> float | None:
        """The ratio kept under ``key``; None where there is none."""
        return self._read().get(key)

    def keep(self, key: str, ratio: float) -> None:
        """Keep ``ratio`` as the newest. Where the disk takes nothing, it will be measured anew."""
        ratios = self._read()
        ratios.pop(key, None)
        ratios[key] = ratio
        newest = dict(list(ratios.items())[-MOST:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(newest, indent=1) + "\n")
        except (OSError, ResourceError):
            return

    def _read(self) -> dict[str, float]:
        try:
            stored = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(stored, dict):
            return {}
        return {key: float(ratio) for key, ratio in stored.items() if _is_ratio(ratio)}


def _is_ratio(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0
