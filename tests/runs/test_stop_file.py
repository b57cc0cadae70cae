"""The stop request that another terminal writes into a run's folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from full_disk import full_disk, has_limits

from cpulm.errors import SettingsError
from cpulm.run_dir import RunDir
from cpulm.runs.stop_file import is_stop_requested, request_stop, watch_for_stop


def wait_for(requests: list[str], seconds: float = 3.0) -> None:
    until = time.monotonic() + seconds
    while not requests and time.monotonic() < until:
        time.sleep(0.02)


def test_a_request_is_reported_once_and_stays(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    requests: list[str] = []
    with watch_for_stop(run, requests.append):
        time.sleep(0.1)
        assert requests == []
        request_stop(run)
        wait_for(requests)
        time.sleep(1.2)
    assert requests == ["cpulm stop"]
    assert run.stop.is_file()  # for the supervisor of a night


def test_a_request_from_before_the_watch_counts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    request_stop(run)
    requests: list[str] = []
    with watch_for_stop(run, requests.append):
        wait_for(requests)
    assert requests == ["cpulm stop"]


@has_limits
def test_a_run_on_a_full_disk_can_be_stopped(tmp_path: Path) -> None:
    with full_disk():
        request_stop(RunDir(tmp_path))
    assert is_stop_requested(RunDir(tmp_path))


def test_nobody_looks_after_the_end_and_nobody_waits_for_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    requests: list[str] = []
    began = time.monotonic()
    with watch_for_stop(run, requests.append):
        pass
    assert time.monotonic() - began < 0.5
    request_stop(run)
    time.sleep(1.2)
    assert requests == []


def test_a_folder_that_takes_no_request(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot write .*stop: No such file or directory"):
        request_stop(RunDir(tmp_path / "gone"))
