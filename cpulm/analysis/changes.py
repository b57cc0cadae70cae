"""Finds the settings of a run that differ from its preset."""

from __future__ import annotations

from typing import Any

from cpulm.analysis.report import SettingChange
from cpulm.preset_files import preset_names
from cpulm.settings.resolve_settings import resolve


def changes_from_preset(settings: dict[str, Any]) -> tuple[SettingChange, ...]:
    """Return the settings that differ from the preset, or from the defaults if the preset is unknown here."""
    if not settings:
        return ()
    name = settings.get("preset")
    preset = resolve(preset=name if name in preset_names() else None).model_dump(mode="json")
    unchanged = flatten(preset)
    return tuple(
        SettingChange(key, unchanged.get(key), value)
        for key, value in flatten(settings).items()
        if key != "preset" and unchanged.get(key) != value
    )


def flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the nested settings by dotted key."""
    found: dict[str, Any] = {}
    for section, inside in settings.items():
        if isinstance(inside, dict):
            found.update({f"{section}.{name}": value for name, value in inside.items()})
        else:
            found[section] = inside
    return found
