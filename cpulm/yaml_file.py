"""Files of YAML 1.2: reads only plain values, lists and mappings, and writes what reads back the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cpulm.errors import SettingsError
from cpulm.regular_file import read_named

_MOST_BYTES = 4 << 20
_DEEPEST = 50
"""Settings and plans are nested three deep; at a thousand the parser takes seconds and then fails."""
_CORE = "tag:yaml.org,2002:"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a file, in which ``on`` is text and ``3e-4`` a number.

    Raises:
        SettingsError: if the file cannot be read or is not a mapping with names as keys.
    """
    hint = "see `cpulm train --print-config` for all settings"
    try:
        loaded = parse_yaml(read_named(path, _MOST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(
            f"cannot read settings from {path}: {error.strerror}", "give a YAML file of settings"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not valid YAML: it cannot be read as text", hint) from error
    except ValueError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}", hint) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise SettingsError(f"{path} does not contain sections of settings", hint)
    return loaded


def parse_yaml(text: str) -> Any:
    """Parse YAML; the result may hold one list many times.

    Raises:
        ValueError: if it is not YAML, is nested too deeply, or has values of other types; says in which line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be read as text"
        raise ValueError(f"in line {mark.line + 1}: {problem}" if mark else problem) from error


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return YAML from which :func:`parse_yaml` reads the same values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Reads plain values by YAML 1.2: ``on``, ``1:30`` and dates are text. A repeated key is an error."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.composer.ComposerError(None, None, "it is nested too deeply", self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def plain(self, node: yaml.ScalarNode) -> Any:
        """The value of a null, a boolean or a number; an explicit tag may stand before any text."""
        text = str(self.construct_scalar(node))
        try:
            return _VALUES[node.tag.removeprefix(_CORE)](text)
        except (LookupError, ValueError):
            kind = node.tag.removeprefix(_CORE)
            problem = f"{text[:40]!r} is not a value of type {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_VALUES: dict[str, Any] = {
    "null": lambda text: {"": None, "~": None, "null": None}[text.lower()],
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,  # decimal: YAML 1.1 would read 010 as eight
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
}
_INTEGER = r"[-+]?[0-9]+(?:_[0-9]+)*"
_NUMBER = rf"(?:{_INTEGER}(?:\.[0-9]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INTEGER, list("-+0123456789")),
    ("float", rf"{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(rf"^(?:{_pattern})$"), _first)
_kept = {
    tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, *(_CORE + k for k in ("str", "seq", "map")))
}
_Loader.yaml_constructors = {**_kept, **{_CORE + tag: _Loader.plain for tag in _VALUES}}


class _Dumper(yaml.SafeDumper):
    """Puts text that looks like a number, or has invisible characters, in double quotes."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = text.isprintable() and text[:1] not in "+-.0123456789"
    style = None if plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
