"""Files of YAML: plain values only, whatever the file holds, and refusals that are quick and short."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cpulm.errors import SettingsError
from cpulm.settings.resolve_settings import resolve
from cpulm.yaml_file import parse_yaml, read_yaml, to_yaml

ANCHORS = "a: &a0 [x, x]\n" + "".join(
    f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
"""A thousand million values in 300 bytes."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[on, 1:30, 2026-01-01, =, <<]", ["on", "1:30", "2026-01-01", "=", "<<"]),
        ("[010, 1_000, -3e-4, .5, 1e3, ~, TRUE]", [10, 1000, -3e-4, 0.5, 1000.0, None, True]),
        ("[-.inf, .INF]", [-math.inf, math.inf]),
        ("!!float 7", 7.0),
        ("!!str 7", "7"),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!timestamp x", "in line 1: could not determine a constructor"),
        ("\na: !!python/object/apply:os.system ['true']", "in line 2: could not determine a constructor"),
        ("!!set {a}", "constructor"),
        ("!!bool x", "'x' is not a value of type bool"),
        ("!!float '_'", "'_' is not a value of type float"),
        ("!!int ''", "'' is not a value of type int"),
        ("? {a: 1}\n: 2", "unhashable"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 5_000, "nested too deeply"),
        ("9" * 5_000, "is not a value of type int"),
        ("*nothing", "undefined alias"),
    ],
)
def test_what_is_no_plain_value_is_refused_in_a_few_words(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        parse_yaml(text)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        ANCHORS,
        ANCHORS + "train: *a9\n",
        ANCHORS + "data: {source: *a9}\n",
        ANCHORS + "train: {lr: *a9}\n",
        f"{'k' * 100_000}: 1\n",
        f"train: {{{'k' * 100_000}: 1}}\n",
        f"train: {'v' * 100_000}\n",
        f"train: {{lr: {'v' * 100_000}}}\n",
        f"train: {{optimizer: {'v' * 100_000}}}\n",
        f"preset: {'v' * 100_000}\n",
    ],
)
def test_a_hostile_file_of_settings_gives_a_short_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        resolve(config=path)
    assert len(raised.value.message) < 400
    assert len(raised.value.hint) < 2000


def test_a_pipe_is_read_once_and_gives_the_same_again(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    handle = os.open(pipe, os.O_RDWR)
    os.write(handle, b"train: {lr: 0.5}\n")
    threading.Timer(0.2, os.close, [handle]).start()
    reader = Path(f"/dev/fd/{os.open(pipe, os.O_RDONLY)}")
    assert read_yaml(reader) == read_yaml(reader) == {"train": {"lr": 0.5}}


def test_what_is_no_file_of_settings_is_refused_at_once(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    for path, why in ((Path("/dev/zero"), "device"), (tmp_path, "Is a directory"), (huge, "larger")):
        with pytest.raises(SettingsError, match=f"cannot read settings from .*{why}"):
            read_yaml(path)


def test_what_is_written_is_read_back() -> None:
    values = {"a": ["1e3", "on", "007", "a\nb", "\x1b", "", "~", "x: y"], "b": {"c": [1, 1e-7, None, True]}}
    assert parse_yaml(to_yaml(values)) == values
