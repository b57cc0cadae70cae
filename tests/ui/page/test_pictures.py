"""The pictures as files: real PNGs, one for each recorded measure."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpulm.analysis.compare import RunComparison
from cpulm.analysis.report import Report
from cpulm.errors import SettingsError
from cpulm.ui.page import palette
from cpulm.ui.page.page import write_page
from cpulm.ui.page.pictures import pictures, write_pictures


def size_of(file: Path) -> tuple[int, int]:
    """Width and height, from the PNG's own header."""
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return int(width), int(height)


def test_a_run_has_a_picture_of_every_curve_that_it_recorded(report: Report, tmp_path: Path) -> None:
    few = replace(report, curves={name: report.curves[name] for name in ("loss", "lr")}, layers={})
    files = write_pictures(tmp_path / "new" / "folder", [few])
    assert [file.name for file in files] == ["loss.png", "lr.png", "time.png"]
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == sorted(
        file.name for file in files
    )
    width, height = size_of(files[0])
    assert width > 1000
    assert height > 400


def test_the_model_and_its_layers_have_theirs(report: Report, look: dict[str, Any]) -> None:
    names = [name for name, _ in pictures([replace(report, curves={})], look)]
    heads = [f"attention_{layer}_{head}" for layer in range(2) for head in range(2)]
    layers = ["layers_weight_norm", "layers_grad_norm", "layers_update_ratio"]
    assert {*layers, *heads, "loss_by_context", "loss_by_kind", "next_token", "embeddings"} <= set(names)
    assert len(names) == len(set(names))


def test_several_runs_share_each_picture(comparison: RunComparison) -> None:
    drawn = dict(pictures(comparison.reports))
    assert {"loss_training", "loss_validation", "lr_AdamW", "lr_Muon"} <= set(drawn)
    for name, spec in drawn.items():
        if name.startswith(("cpu", "memory", "temperature")):  # a run of a second may have no sample of them
            continue
        assert {row["series"] for row in spec["datasets"]["points"]} == {r.name for r in comparison.reports}


def test_nothing_in_a_picture_depends_on_the_pages_style(report: Report, look: dict[str, Any]) -> None:
    """A PNG knows no CSS: a colour of the page's would be black there."""
    assert palette.on_page("ink") == "var(--ink)"
    assert not any("var(--" in repr(spec) for _, spec in pictures([report], look))


def test_without_the_library_the_hint_says_how_to_get_it(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(SettingsError) as raised:
        write_pictures(tmp_path, [report])
    assert raised.value.hint == "pip install vl-convert-python"


def test_a_path_that_cannot_be_written_is_named(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot write"):
        write_pictures(tmp_path / "file", [report])
    with pytest.raises(SettingsError, match="cannot write"):
        write_page(tmp_path / "file" / "page.html", [report])
