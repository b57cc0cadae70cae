"""Reads the settings in a run's folder."""

from __future__ import annotations

from typing import Any

from cpulm.errors import SettingsError
from cpulm.run_dir import RunDir
from cpulm.yaml_file import read_yaml


def read_settings(run: RunDir) -> dict[str, Any]:
    """All settings of the run, nested; empty if they cannot be read.

    They are not validated: a run of another version may have other settings.
    """
    try:
        return read_yaml(run.settings)
    except SettingsError:
        return {}
