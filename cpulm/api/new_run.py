"""The settings of a new run: a preset's, planned ones, or those of a model that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cpulm.errors import SettingsError

if TYPE_CHECKING:
    from cpulm.benchmark.planner import Make
    from cpulm.settings import Settings


def resolve_new_run(preset: str | None, given: Mapping[str, Any]) -> tuple[Settings, Make | None]:
    """Resolve the settings of a new run, and what makes settings of planned values if it is to be planned.

    Args:
        given: the arguments of :func:`cpulm.settings.resolve_settings.resolve` but the preset.

    Raises:
        SettingsError: as ``resolve``; or if a planned run is to begin with a model.
        DataError: if the model that it begins with cannot be read.
    """
    from cpulm.settings.resolve_settings import AUTO, resolve

    typed = resolve(None if preset == AUTO else preset, **given)
    if typed.train.init_from is not None:
        if preset == AUTO:
            raise SettingsError(
                f"--preset {AUTO} plans a new model, and train.init_from names one", "leave one out"
            )
        return _beginning_with(typed, _or_default(preset, given), given), None
    has_time = typed.train.max_time is not None or typed.train.until is not None
    if preset == AUTO or (preset is None and given["config"] is None and has_time):
        return typed, lambda planned: resolve(AUTO, planned=planned, **given)
    return resolve(_or_default(preset, given), **given), None


def _or_default(preset: str | None, given: Mapping[str, Any]) -> str | None:
    return preset or (None if given["config"] else "tiny")


def _beginning_with(typed: Settings, preset: str | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a run that begins with the model that ``typed``, the user's settings, name."""
    from cpulm.settings.resolve_settings import resolve
    from cpulm.training.initial import initial_settings, read_initial

    assert typed.train.init_from is not None
    model = read_initial(typed.train.init_from, lambda _: None)
    initial = initial_settings(model, adapters=typed.lora.rank > 0)
    return resolve(preset, **given, initial=initial)
