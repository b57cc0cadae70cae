"""Settings that were typed and have no effect in the run that they describe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpulm.command import typed
from cpulm.settings import HORIZONS

if TYPE_CHECKING:
    from cpulm.settings import Settings

_WITHOUT_EFFECT: tuple[tuple[tuple[str, ...], Callable[[Settings], bool], str], ...] = (
    (("data.val_fraction",), lambda one: bool(one.data.val_source), "a validation text is given"),
    (
        ("data.vocab_size",),
        lambda one: one.data.tokenizer not in ("bpe", "word"),
        "this tokenizer has its own vocabulary",
    ),
    (("model.rope_theta",), lambda one: one.model.position != "rope", "model.position is not rope"),
    (("train.momentum",), lambda one: one.train.optimizer == "adamw", "train.optimizer is adamw"),
    (("train.decay_fraction",), lambda one: one.train.schedule != "wsd", "train.schedule is not wsd"),
    (("train.max_passes",), lambda one: not one.train.ends_in_time, "the horizon is not a time"),
    (("train.bpe_dropout",), lambda one: one.train.records, "train.records is set"),
    (
        ("train.bpe_dropout",),
        lambda one: one.data.tokenizer in ("byte", "char", "word"),
        "this tokenizer has no merges",
    ),
    (("train.min_lr_ratio",), lambda one: one.train.schedule == "constant", "train.schedule is constant"),
    (("lora.alpha", "lora.projections"), lambda one: not one.lora.rank, "lora.rank is 0"),
    (
        ("train.teacher_weight", "train.teacher_temperature"),
        lambda one: one.train.teacher is None,
        "there is no train.teacher",
    ),
    (
        ("train.outer_lr", "train.outer_momentum"),
        lambda one: not one.train.outer_steps,
        "train.outer_steps is 0",
    ),
    (("distributed.share",), lambda one: one.distributed.mode == "sync", "distributed.mode is sync"),
    (
        ("sample.prompt", "sample.temperature", "sample.top_k"),
        lambda one: one.sample.max_new_tokens == 0,
        "sample.max_new_tokens is 0",
    ),
    (("sample.top_k",), lambda one: one.sample.temperature == 0, "sample.temperature is 0"),
)


def without_effect(settings: Settings, assignments: Iterable[str], flags: Mapping[str, Any]) -> list[str]:
    """A warning for each setting that was typed and changes nothing in a run with ``settings``.

    Args:
        assignments: of ``--set``, ``key=value``.
        flags: named options, by the settings' keys.
    """
    given = {assignment.partition("=")[0].strip() for assignment in assignments} | set(flags)
    return [
        f"{key} has no effect: {why}"
        for keys, has_none, why in _WITHOUT_EFFECT
        for key in keys
        if key in given and has_none(settings) and _value(settings, key) is not None
    ]


def _value(settings: Settings, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


def ignored_by_resume(
    out: Path, taken: Iterable[str], preset: str | None, config: Path | None, **given: Any
) -> list[str]:
    """A warning for each setting that was given and differs from that of the run at ``out``, which stays.

    Args:
        taken: keys of settings that a resumed run takes.
        given: ``environ``, ``assignments`` and ``flags`` of :func:`cpulm.settings.resolve_settings.resolve`.

    Raises:
        SettingsError: if a setting is wrong.
    """
    from cpulm.analysis.changes import flatten
    from cpulm.data.sources import absolute_sources
    from cpulm.run_dir import RunDir
    from cpulm.runs.stored_settings import read_settings
    from cpulm.settings import changed
    from cpulm.settings.resolve_settings import is_given, resolve

    asked = resolve(preset, config, **given)
    asked = changed(asked, data=absolute_sources(asked.data))
    wanted, stored = flatten(asked.model_dump(mode="json")), flatten(read_settings(RunDir(out)))
    kept = {*taken, "preset", *(f"train.{name}" for name in HORIZONS)}
    differing = [
        f"{key} = {value} (it has {stored[key]})"
        for key, value in wanted.items()
        if key not in kept
        and key in stored
        and stored[key] != value
        and is_given(key, config=config, **given)
    ]
    if preset is not None and preset != stored.get("preset"):
        differing.insert(0, f"the preset {preset}")
    return [f"{typed(out)} continues with its own settings: no effect of {one}" for one in differing]
