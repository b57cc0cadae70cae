"""Finds the preset files; needs only the standard library, so it also works before cpulm is installed."""

from __future__ import annotations

from pathlib import Path


def presets_folder() -> Path:
    """The folder of preset files: inside the installed package, or beside it in a source checkout."""
    inside = Path(__file__).parent / "presets"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "presets"


def preset_names() -> list[str]:
    """Names of all presets in alphabetical order."""
    return sorted(path.stem for path in presets_folder().glob("*.yaml"))
