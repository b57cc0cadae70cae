"""The settings that a run's folder holds."""

from __future__ import annotations

from typing import Any

from cpulm.errors import SettingsError
from cpulm.run_dir import RunDir
from cpulm.settings_resolver import read_yaml


def read_settings(run: RunDir) -> dict[str, Any]:
    """All settings of the run, nested; nothing where they cannot be read.

    They are taken as they are and not validated, for a run of another version may have others.
    """
    try:
        return read_yaml(run.settings)
    except SettingsError:
        return {}
