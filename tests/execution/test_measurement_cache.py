"""Measured ratios outlive the process, and a damaged memory of them does no harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpulm.execution.measurement_cache import MOST, Ratios


def test_what_was_kept_is_found_by_another_reader(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "ratios.json"
    assert Ratios(path).find("a") is None
    Ratios(path).keep("a", 0.5)
    Ratios(path).keep("b", 1.25)
    Ratios(path).keep("a", 0.75)
    assert (Ratios(path).find("a"), Ratios(path).find("b")) == (0.75, 1.25)


def test_the_newest_stay_and_the_file_stays_small(tmp_path: Path) -> None:
    ratios = Ratios(tmp_path / "ratios.json")
    for number in range(MOST + 3):
        ratios.keep(f"shape {number}", 0.5)
        ratios.keep("used again and again", 0.25)
    stored = json.loads((tmp_path / "ratios.json").read_text("utf-8"))
    assert len(stored) == MOST
    assert ratios.find("used again and again") == 0.25
    assert ratios.find("shape 0") is None
    assert ratios.find(f"shape {MOST + 2}") == 0.5


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"a": 0.', b"[0.5]", b"\xff\xfe", b'{"a": "0.5"}', b'{"a": NaN}', b'{"a": -1.0}', b'{"a": true}'],
)
def test_a_damaged_file_is_ignored_and_written_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "ratios.json"
    path.write_bytes(damage)
    assert Ratios(path).find("a") is None
    Ratios(path).keep("a", 0.5)
    assert Ratios(path).find("a") == 0.5


def test_a_place_that_cannot_be_written_only_forgets(tmp_path: Path) -> None:
    (tmp_path / "no folder").write_text("a file", "utf-8")
    ratios = Ratios(tmp_path / "no folder" / "ratios.json")
    ratios.keep("a", 0.5)
    assert ratios.find("a") is None
