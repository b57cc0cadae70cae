"""Resolves a run's settings from several sources, in rising order of precedence:

default < preset < ``--config FILE`` < environment (``CPULM_TRAIN__LR``) < ``--set train.lr=3e-4``
< named flags.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cpulm.command import ENV_PREFIX, is_setting
from cpulm.errors import SettingsError
from cpulm.preset_files import preset_names, presets_folder
from cpulm.settings import HORIZONS, Settings
from cpulm.typed_json import shown
from cpulm.yaml_file import parse_yaml, read_yaml

Layer = dict[str, Any]

AUTO = "auto"
"""The preset whose settings are planned for the text, the machine and the time of the run."""
_MOST_CHARACTERS = 4 << 20
"""Of a setting: 100 MB of paths in a checkpoint take minutes to be written into settings.yaml."""
_LONGEST_WORD = 80
_SEE_ALL = "see `cpulm train --print-config` for all settings"


def load_preset(name: str) -> tuple[Layer, dict[str, Any]]:
    """Load a preset's settings, and its ``about`` section (title, time, reasons).

    Raises:
        SettingsError: if there is no such preset; the hint names the nearest one.
    """
    if name not in preset_names():
        raise SettingsError(f"there is no preset {shown(name)}", nearest(name, preset_names()))
    layer = read_yaml(presets_folder() / f"{name}.yaml")
    return layer, layer.pop("about", {})


def resolve(
    preset: str | None = None,
    config: Path | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    assignments: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    planned: Mapping[str, Any] | None = None,
    initial: Mapping[str, Any] | None = None,
) -> Settings:
    """Merge and validate the settings from all sources.

    Args:
        preset: name of a preset; if None, the one that ``config`` names, if any.
        config: settings, by section or by dotted key, or a YAML file of them, such as a run stores.
        environ: the environment; ``CPULM_TRAIN__LR=3e-4`` sets ``train.lr``.
        assignments: texts of the form ``a.b=value``; the value is YAML, or plain text if the setting is text.
        flags: values by dotted key; None for flags that were not given.
        planned: values by dotted key in the place of a preset's, for the preset ``auto``.
        initial: values by dotted key of the model that the run begins with; they override the preset's.

    Raises:
        SettingsError: names the key, the value and what is valid.
    """
    if preset == AUTO and planned is None:
        raise SettingsError(
            f"the preset {AUTO} is planned for a time",
            "give `cpulm train` one: --max-time 30m or --until 07:00",
        )
    from_config = _from_config(config)
    preset = preset or str(from_config.get("preset") or "")
    layers: list[Layer] = [dict(planned or {})]
    if preset and preset != AUTO:
        layers.append(_flat(load_preset(preset)[0], f"the preset {preset}"))
    layers.append(dict(initial or {}))
    layers.append(from_config)
    environment = _from_environment(environ or {})
    layers.append(environment)
    layers.append(_from_assignments(assignments))
    layers.append(_from_flags(flags or {}))
    merged: Layer = {}
    for layer in layers:
        _merge_layer(merged, layer)
    if merged.get("data.chat") is True and merged.setdefault("train.records", True) is False:
        raise SettingsError("data.chat makes records of conversations", "leave train.records=false out")
    try:
        return validate(_nested({**merged, "preset": preset}))
    except SettingsError as error:
        key = error.message.partition(" = ")[0]
        if key in environment and key not in {**layers[-2], **layers[-1]}:  # nobody sees it in the command
            error.message += f" (in the environment: {ENV_PREFIX}{key.upper().replace('.', '__', 1)})"
            error.args = (error.message,)
        raise


def is_given(
    key: str,
    *,
    config: Path | Mapping[str, Any] | None,
    environ: Mapping[str, str],
    assignments: Iterable[str],
    flags: Mapping[str, Any],
) -> bool:
    """Whether the user gave the setting ``key``, by any of the ways of :func:`resolve` but a preset."""
    section, _, name = key.partition(".")
    assigned = any(text.partition("=")[0].strip() == key for text in assignments)
    in_environment = f"{ENV_PREFIX}{section}__{name}".upper() in map(str.upper, environ)
    in_config = key in _from_config(config)
    return assigned or in_environment or in_config or flags.get(key) is not None


def validate(values: Mapping[str, Any]) -> Settings:
    """Validate a nested mapping as settings.

    Raises:
        SettingsError: names the first key that is invalid.
    """
    _refuse_huge(values)
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(error) from error


def _refuse_huge(values: Mapping[str, Any]) -> None:
    """Raises SettingsError for values deeper or longer than any setting: pydantic would visit all that they
    hold, and a few lists that hold one another many times hold billions."""
    for section, inside in values.items():
        for name, value in inside.items() if isinstance(inside, dict) else ():
            in_list = isinstance(value, list) and any(isinstance(one, (list, dict)) for one in value)
            if isinstance(value, dict) or in_list:
                raise SettingsError(f"{section}.{name} cannot be a nested list", _SEE_ALL)
            texts = value if isinstance(value, list) else [value]
            if sum(len(text) for text in texts if isinstance(text, str)) > _MOST_CHARACTERS:
                raise SettingsError(
                    f"{section}.{name} has more than {_MOST_CHARACTERS:,} characters",
                    "name a folder instead of its files" if name == "source" else _SEE_ALL,
                )


def known_keys() -> dict[str, Any]:
    """Return the default value of every setting by dotted key."""
    keys: dict[str, Any] = {}
    for name, spec in Settings.model_fields.items():
        if isinstance(spec.default, BaseModel):
            for inner, value in spec.default:
                keys[f"{name}.{inner}"] = value
        else:
            keys[name] = spec.default
    return keys


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word nearest to ``word``, or all known words if they are few.

    A key without its section (``lr``) matches the key with it (``train.lr``).
    """
    choices, word = list(known), word[:_LONGEST_WORD]  # the search takes a time that grows with its square
    close = [choice for choice in choices if choice.rpartition(".")[2] == word.rpartition(".")[2]]
    close = close or difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(choices)}" if len(choices) <= 20 else _SEE_ALL


def _from_config(config: Path | Mapping[str, Any] | None) -> Layer:
    if config is None:
        return {}
    if isinstance(config, Path):
        return _flat(read_yaml(config), str(config))
    layer = _flat(dict(config), "the config")
    return {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in layer.items()
    }


def _from_environment(environ: Mapping[str, str]) -> Layer:
    sections = _sections()
    layer: Layer = {}
    for name, text in environ.items():
        _refuse_one_underscore(name)
        if not is_setting(name) or not text:
            continue
        key = name[len(ENV_PREFIX) :].lower().replace("__", ".", 1)
        if key.split(".")[0] not in sections:
            raise SettingsError(
                f"the environment variable {name} does not name a section of settings",
                nearest(key.split(".")[0], sections),
            )
        _check_key(key, f"the environment variable {name}")
        layer[key] = parse_value(text, key)
    return layer


def _refuse_one_underscore(name: str) -> None:
    """Raise SettingsError for a variable such as ``CPULM_TRAIN_LR``, which would set nothing."""
    if not name.upper().startswith(ENV_PREFIX) or "__" in name:
        return
    key = name[len(ENV_PREFIX) :].lower().replace("_", ".", 1)
    if key in known_keys():
        right = ENV_PREFIX + key.upper().replace(".", "__", 1)
        raise SettingsError(f"the environment variable {name} sets nothing", f"did you mean {right}?")


def _from_assignments(assignments: Iterable[str]) -> Layer:
    layer: Layer = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SettingsError(
                f"--set {shown(text)} is not of the form key=value", "such as --set train.lr=3e-4"
            )
        _check_key(key, "--set")
        layer[key] = parse_value(value, key)
    return layer


def _from_flags(flags: Mapping[str, Any]) -> Layer:
    layer = {key: value for key, value in flags.items() if value is not None}
    for key in layer:
        _check_key(key, "a flag")
    return layer


def _flat(layer: Layer, source: str) -> Layer:
    """Flatten a file's nested mapping to dotted keys, without the ``about`` section of a preset.

    Raises:
        SettingsError: if a key is unknown or a section is not a mapping.
    """
    flat: Layer = {}
    for name, inside in layer.items():
        if name in _sections():
            if not isinstance(inside or {}, dict):
                raise SettingsError(
                    f"{source}: {name} is a section of settings, not {shown(inside)}",
                    "write its settings under it",
                )
            flat.update({f"{name}.{key}": value for key, value in (inside or {}).items()})
        elif name != "about":
            flat[name] = inside
    for key in flat:
        _check_key(key, source)
    return flat


def _nested(flat: Layer) -> Layer:
    nested: Layer = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot:
            nested.setdefault(section, {})[name] = value
        else:
            nested[key] = value
    return nested


def _check_key(key: str, source: str) -> None:
    if key not in known_keys():
        raise SettingsError(f"{source}: there is no setting {shown(key)}", _nearest_key(key))
    if key == "preset" and source == "--set":
        raise SettingsError("--set cannot choose a preset", "choose it with --preset NAME")


def _nearest_key(key: str) -> str:
    sections = _sections() if "." not in key and key not in _sections() else []
    return nearest(key, [*sections, *known_keys()])


def _sections() -> list[str]:
    return [name for name, spec in Settings.model_fields.items() if isinstance(spec.default, BaseModel)]


def _merge_layer(merged: Layer, layer: Layer) -> None:
    """Merge ``layer`` into ``merged``; a horizon replaces any horizon of the layers before it."""
    horizons = [f"train.{name}" for name in HORIZONS]
    if any(layer.get(key) is not None for key in horizons):
        for key in horizons:
            merged.pop(key, None)
    merged.update(layer)


def parse_value(text: str, key: str) -> Any:
    """Parse the value of setting ``key``: YAML, or plain text if the setting is text or a list of texts.

    For these, too, quotes and brackets are YAML: ``"a\\nb"`` has a line break, ``[a, b]`` is a list. If
    the text may be missing, ``null`` is YAML, too.
    """
    is_text, is_list, is_optional = _kind(key)
    quoted = text[:1] in ('"', "'") or (is_list and text[:1] == "[")
    if (is_text or is_list) and not quoted:
        return None if is_optional and text in ("null", "~") else text
    try:
        value = parse_yaml(text)
    except ValueError as error:
        if is_text:
            return text
        raise SettingsError(f"{key}: cannot read the value {shown(text)}", _description(key)) from error
    return text if value is None and not text.strip() else value


def allowed_values(key: str) -> list[str]:
    """Return the words that setting ``key`` allows; empty if it allows other values or is unknown."""
    section, _, name = key.partition(".")
    inside = getattr(Settings.model_fields.get(section), "default", None)
    spec = type(inside).model_fields.get(name) if isinstance(inside, BaseModel) else None
    if spec is None:
        return []
    if spec.annotation is bool:
        return ["true", "false"]
    return list(get_args(spec.annotation)) if get_origin(spec.annotation) is Literal else []


def replaced(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return a copy of ``settings`` with other values by dotted key; None leaves a value unchanged.

    Raises:
        SettingsError: names the key, the value and what is valid.
    """
    merged = settings.model_dump()
    for key, value in values.items():
        if value is not None:
            section, _, name = key.partition(".")
            merged[section][name] = value
    return validate(merged)


def _kind(key: str) -> tuple[bool, bool, bool]:
    """Whether the setting ``key`` is text, whether it is a list of texts, and whether it is text or null."""
    section, _, name = key.partition(".")
    annotation = type(Settings.model_fields[section].default).model_fields[name].annotation
    is_optional = annotation == str | None
    is_text = annotation is str or is_optional or get_origin(annotation) is Literal
    return is_text, get_origin(annotation) is list, is_optional


def _explain(error: ValidationError) -> SettingsError:
    first = error.errors()[0]
    key = ".".join(part for part in first["loc"] if isinstance(part, str))  # not the place in a list
    if first["type"] == "extra_forbidden":
        return SettingsError(f"there is no setting {shown(key)}", _nearest_key(key))
    value = first["input"]
    reason = _reason(first)
    if isinstance(value, (dict, BaseModel)) or not key:
        where = f"{key}: " if key else ""
        return SettingsError(f"{where}{reason}", _SEE_ALL)
    hint = _description(key)
    if first["type"] == "literal_error":
        hint = nearest(str(value), re.findall("'([^']+)'", first["ctx"]["expected"]))
    return SettingsError(f"{key} = {shown(value)}: {reason}", hint)


_REASONS = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:,.17g}",
    "finite_number": "must be a finite number",
    "too_short": "must not be empty",
    "list_type": "must be a text, or a list of texts",
    "model_type": "this is a section of settings",
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("string_type", "string_unicode"), "must be text"),
}
"""What a value must be, by the type of pydantic's error; the limits come from its context."""


def _reason(error: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, in cpulm's words; pydantic's message is never shown."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "value_error":
        reason = str(limits["error"])
        rest = reason.removeprefix(f"{error['input']!r} ")
        return reason if rest == reason else f"this {rest}"
    if kind == "literal_error":
        return f"must be one of {limits['expected'].replace(chr(39), '')}".replace(" or ", ", ")
    return _REASONS.get(kind, "cannot be used here").format(**limits)


def _description(key: str) -> str:
    """Return the documentation of setting ``key``, as a hint."""
    section, *names = key.split(".")[:2]  # data.source.0 is an item of data.source
    spec = Settings.model_fields[section]
    meaning = spec.description
    if isinstance(spec.default, BaseModel):
        inside = type(spec.default)
        meaning = inside.model_fields[names[0]].description if names else inside.__doc__
    return f"{'.'.join([section, *names])}: {' '.join((meaning or '').split())}"
