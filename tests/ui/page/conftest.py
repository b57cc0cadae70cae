"""Real runs of a small model, and their pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import settings_for, train

from cpulm.analysis.build_report import read_report
from cpulm.analysis.compare import RunComparison, compare
from cpulm.analysis.report import Report
from cpulm.inspection.inspect_model import inspect_model
from cpulm.ui.page.page import write_page

EVIL = '</script><b id="evil">{{data}}'
"""A folder's name that would end the page's data early, were it not written safely."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in their learning rate, with samples and statistics of their layers."""
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    text.write_text("".join(f"def count{n}(x):\n    return x + {n}\n\n" for n in range(200)))
    found = []
    for number, lr in enumerate(("1e-3", "1e-2")):
        settings = settings_for(
            text,
            "train.steps=60",
            "eval.every=10",
            "log.layer_stats_every=5",
            "sample.max_new_tokens=12",
            f"train.lr={lr}",
        )
        found.append(train(settings, folder / f"run-{number}")[1].run.path)
    return found


@pytest.fixture(scope="session")
def report(runs: list[Path]) -> Report:
    return read_report(runs[0])


@pytest.fixture(scope="session")
def look(runs: list[Path]) -> dict[str, Any]:
    return inspect_model(runs[0] / "best.pt").to_json()


@pytest.fixture(scope="session")
def comparison(runs: list[Path]) -> RunComparison:
    return compare([read_report(run) for run in runs])


@pytest.fixture(scope="session")
def pages(
    report: Report,
    look: dict[str, Any],
    comparison: RunComparison,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """One run with its model, and both runs compared."""
    folder = tmp_path_factory.mktemp("pages")
    write_page(folder / "one.html", [report], look=look)
    write_page(folder / "many.html", comparison.reports, comparison=comparison)
    return {"one": folder / "one.html", "many": folder / "many.html"}
