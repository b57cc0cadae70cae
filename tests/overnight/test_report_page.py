"""The report page: written whenever a run ends; a failure never harms the run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from forked import forks as forks
from small_runs import settings_for, train

from cpulm.overnight.report_page import is_outdated, write_report
from cpulm.run_dir import RunDir


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("page")
    (folder / "text.txt").write_text("the cat sat on the mat and the rat ran.\n" * 60)
    return train(settings_for(folder / "text.txt"), folder / "run")[1].run


def test_it_is_written_and_outdated_once_the_record_goes_on(trained: RunDir, forks: None) -> None:
    assert is_outdated(trained)
    assert write_report(trained) == ""
    assert trained.report.read_bytes().startswith(b"<!DOCTYPE html>")
    assert not is_outdated(trained)
    later = trained.report.stat().st_mtime_ns + 10**9
    os.utime(trained.metrics, ns=(later, later))
    assert is_outdated(trained)


def test_what_is_in_the_way_is_said_in_words(trained: RunDir, forks: None) -> None:
    trained.report.unlink(missing_ok=True)
    trained.report.mkdir()
    try:
        assert str(trained.report) in write_report(trained)
    finally:
        trained.report.rmdir()


def test_a_folder_without_a_checkpoint_stays_free_for_a_run(tmp_path: Path) -> None:
    assert write_report(RunDir(tmp_path)) == ""
    assert list(tmp_path.iterdir()) == []
    assert not is_outdated(RunDir(tmp_path))


def test_a_night_without_a_report_on_request_writes_none(trained: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_bytes(trained.metrics.read_bytes())
    run.settings.write_text(trained.settings.read_text())
    assert is_outdated(run)
    run.settings.write_text(trained.settings.read_text().replace("report: true", "report: false"))
    assert not is_outdated(run)
