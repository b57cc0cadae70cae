"""Only one process trains in a folder, whenever a second one starts and however the first one ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cpulm.errors import SettingsError
from cpulm.run_dir import RunDir
from cpulm.runs.lock import holder, locked

HOLD = """
import sys, time
from pathlib import Path
from cpulm.runs.lock import locked
from cpulm.errors import SettingsError
from cpulm.run_dir import RunDir
for line in sys.stdin:
    try:
        with locked(RunDir(Path(line.strip()))):
            print("held", flush=True)
            sys.stdin.readline()
    except SettingsError as error:
        print("refused", error.message, flush=True)
        sys.stdin.readline()
    print("done", flush=True)
"""
"""For each folder on stdin: take its lock, say so, and let go at the next line."""


class Process:
    """Another process that takes locks as it is told."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, line: object) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()

    def hear(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()


@contextmanager
def processes(count: int) -> Iterator[list[Process]]:
    started = [Process() for _ in range(count)]
    try:
        yield started
    finally:
        for each in started:
            each.popen.kill()
            each.popen.communicate()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def stale_line(run: RunDir, **changes: Any) -> None:
    """A lock as a living process writes it, with ``changes``, and no process behind it."""
    with locked(run):
        line = json.loads(run.lock.read_text())
    run.lock.write_text(json.dumps({**line, **changes}) + "\n")


def test_the_holder_is_recorded_and_removed_afterwards(run: RunDir) -> None:
    assert holder(run) is None
    with locked(run):
        found = holder(run)
        assert found is not None
        assert (found.pid, found.here, found.alive) == (os.getpid(), True, True)
        assert abs(found.since - time.time()) < 5
    assert holder(run) is None
    assert run.lock.read_bytes() == b""


def test_a_second_process_is_refused_with_a_hint(run: RunDir) -> None:
    with processes(1) as [other]:
        other.say(run.path)
        assert other.hear() == "held"
        with pytest.raises(SettingsError, match=rf"by process {other.popen.pid} on ") as caught, locked(run):
            pass
        assert f"cpulm watch {run.path}" in caught.value.hint
        assert f"cpulm stop {run.path}" in caught.value.hint
        other.say("let go")
        assert other.hear() == "done"
        with locked(run):
            pass


def test_the_same_process_is_refused_as_well(run: RunDir) -> None:
    with locked(run), pytest.raises(SettingsError, match=f"by process {os.getpid()} "), locked(run):
        pass


def test_the_lock_is_given_back_after_an_error(run: RunDir) -> None:
    with pytest.raises(ZeroDivisionError), locked(run):
        _ = 1 / 0
    with locked(run):
        pass


@pytest.mark.parametrize("left_over", [False, True], ids=["fresh", "stale"])
def test_of_two_processes_that_start_together_one_gets_the_lock(run: RunDir, left_over: bool) -> None:
    with processes(2) as pair:
        for number in range(30):
            path = run.path / str(number)
            path.mkdir()
            if left_over:
                stale_line(RunDir(path), started="another")
            for each in pair:
                each.say(path)
            answers = sorted(each.hear() for each in pair)
            assert answers[0] == "held"
            assert answers[1].startswith(f"refused {path} is already being trained by process ")
            for each in pair:
                each.say("let go")
                assert each.hear() == "done"


def test_a_killed_holder_blocks_nobody(run: RunDir) -> None:
    for _ in range(3):
        with processes(1) as [other]:
            other.say(run.path)
            assert other.hear() == "held"
            other.popen.kill()
            if hasattr(os, "waitid"):
                # It has ended, and nobody has collected its remains: the number is still taken.
                os.waitid(os.P_PID, other.popen.pid, os.WEXITED | os.WNOWAIT)
            else:
                other.popen.wait()
            with locked(run):
                pass
            assert holder(run) is None


def test_the_lock_of_a_killed_process_is_recognized(run: RunDir) -> None:
    with processes(1) as [other]:
        other.say(run.path)
        assert other.hear() == "held"
        other.popen.kill()
        other.popen.wait()
        found = holder(run)
        assert found is not None
        assert (found.pid, found.alive) == (other.popen.pid, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"started": "another"},  # this number, given to another process since
        {"pid": 2**22 + 1},  # above the most that Linux gives
        {"boot": "another", "table": "another"},  # the machine was started again
        {"inode": 0, "host": "elsewhere", "boot": "another", "table": "another"},  # a copied folder
    ],
    ids=["number given again", "number gone", "booted since", "copied"],
)
def test_a_lock_of_a_dead_process_is_taken_over(run: RunDir, changes: dict[str, Any]) -> None:
    stale_line(run, **changes)
    found = holder(run)
    assert found is None or not found.alive
    with locked(run):
        found = holder(run)
        assert found is not None
        assert found.pid == os.getpid()


def test_an_intact_line_of_this_process_is_respected(run: RunDir) -> None:
    """What the tests above change is what makes the difference."""
    stale_line(run)
    with pytest.raises(SettingsError, match="is already being trained"), locked(run):
        pass


def test_another_machine_may_train_the_run(run: RunDir) -> None:
    stale_line(run, host="elsewhere", boot="another", table="another")
    found = holder(run)
    assert found is not None
    assert (found.host, found.here, found.alive) == ("elsewhere", False, True)
    with pytest.raises(SettingsError, match="another machine, elsewhere") as caught, locked(run):
        pass
    assert f"remove {run.lock}" in caught.value.hint
    run.lock.unlink()
    with locked(run):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="containers share a kernel on Linux only")
def test_a_container_on_this_machine_is_judged_by_the_file_s_lock(run: RunDir) -> None:
    stale_line(run, host="container", table="another")
    found = holder(run)
    assert found is not None
    assert not found.alive
    with locked(run):
        line = json.loads(run.lock.read_text())
        run.lock.write_text(json.dumps({**line, "host": "container", "table": "another"}) + "\n")
        found = holder(run)
        assert found is not None
        assert found.alive
        with pytest.raises(SettingsError, match="on container since"), locked(run):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7\n", b"\xff\x00", b'{"pid": 1}\n', b"x" * 10000])
def test_a_damaged_lock_is_held_by_nobody(run: RunDir, content: bytes) -> None:
    run.lock.write_bytes(content)
    assert holder(run) is None
    with locked(run):
        found = holder(run)
        assert found is not None
        assert found.pid == os.getpid()


def test_a_file_lock_without_a_name_is_waited_for_and_then_told(run: RunDir) -> None:
    with processes(1) as [other]:
        other.say(run.path)
        assert other.hear() == "held"
        run.lock.write_bytes(b"")
        with pytest.raises(SettingsError, match="its process id is unknown"), locked(run):
            pass


def test_a_folder_where_nothing_can_be_written(run: RunDir) -> None:
    run.lock.mkdir()
    with pytest.raises(SettingsError, match="cannot write in") as caught, locked(run):
        pass
    assert "writable" in caught.value.hint


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(run: RunDir) -> None:
    run.path.chmod(0o500)
    with pytest.raises(SettingsError, match="Permission denied"), locked(run):
        pass
    run.path.chmod(0o700)


def test_a_lock_that_is_a_link_leaves_its_target_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    thesis = tmp_path / "thesis"
    thesis.write_text("mine")
    run.lock.symlink_to(thesis)
    with pytest.raises(SettingsError, match="lock: it is a link to another file"), locked(run):
        pass
    assert thesis.read_text() == "mine"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_lock_that_is_no_file_is_refused_at_once(tmp_path: Path, make: Any) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    make(run.lock)
    assert holder(run) is None
    with pytest.raises(SettingsError, match="cannot write in"), locked(run):
        pass


def test_a_lock_of_deeply_nested_json_names_nobody(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.lock.write_text("[" * 4000)
    assert holder(run) is None
    with locked(run):
        assert holder(run) is not None
