"""Tells what cpulm wrote from text: a folder that holds both is trained on its text alone."""

from __future__ import annotations

from pathlib import Path

from cpulm.cache_dir import cache_folder
from cpulm.data.tokenfile import is_token_folder
from cpulm.run_dir import RunDir

_SWEEP_PLAN = "sweep.yaml"
_WEIGHTS = "model.safetensors"
"""Beside it are megabytes of a vocabulary as JSON, also where another program wrote it."""


def is_own_folder(folder: Path) -> bool:
    """Whether ``folder`` is a run, sweep, token folder, model or cache; False if it may not be entered."""
    run = RunDir(folder)
    try:
        is_run = run.settings.is_file() and any(
            trace.is_file() for trace in (run.metrics, run.lock, run.latest, run.best)
        )
        is_sweep, is_model = (folder / _SWEEP_PLAN).is_file(), (folder / _WEIGHTS).is_file()
        return is_run or is_sweep or is_model or is_token_folder(folder) or _is_cache(folder)
    except OSError:
        return False


def _is_cache(folder: Path) -> bool:
    cache = cache_folder()
    return cache.is_dir() and folder.samefile(cache)
