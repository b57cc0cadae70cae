"""The launcher: it starts again what was lost, ends with the processes' exit code, and passes signals on."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from forked import Forked, forked
from forked import forks as forks
from ranks import free_port
from small_runs import SMALL

from cpulm.distributed import join
from cpulm.distributed.join import AGAIN, joined
from cpulm.distributed.network import VARIABLE
from cpulm.errors import CpulmError
from cpulm.events import CheckpointSaved, RunStarted, StepDone, from_json
from cpulm.exit_codes import LOST, SETTINGS, STOPPED
from cpulm.run_dir import RunDir

pytestmark = pytest.mark.usefixtures("forks")
LONG = ["train.steps=4000", "eval.every=4000", "sample.max_new_tokens=0", "log.report=false"]


def train(folder: Path, *more: str) -> tuple[Forked, RunDir]:
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"{n} and {n + 1} are {2 * n + 1}." for n in range(400)))
    settings = [word for one in (*SMALL, *LONG, "runtime.precision=fp32") for word in ("--set", one)]
    run = RunDir(folder / "run")
    process = Forked(
        folder,
        *("train", str(text), f"--out={run.path}", "--nproc=2", "--headless", *settings, *more),
        stderr=folder / "said",
    )
    return process, run


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 100
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def events(run: RunDir) -> list[object]:
    lines = run.metrics.read_text("utf-8").splitlines() if run.metrics.exists() else []
    return [from_json(line) for line in lines]


def has_trained(run: RunDir) -> bool:
    return any(isinstance(event, StepDone) for event in events(run))


def processes(launcher: int) -> list[int]:
    """Process ids of what stands for the run's processes."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def test_a_process_that_is_killed_loses_nothing_and_a_signal_ends_all(tmp_path: Path) -> None:
    process, run = train(tmp_path)
    wait_until(lambda: has_trained(run))
    os.kill(processes(process.pid)[1], signal.SIGKILL)
    wait_until(lambda: sum(isinstance(event, RunStarted) for event in events(run)) == 2)
    here = processes(process.pid)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == STOPPED
    said = (tmp_path / "said").read_text()
    assert "error: lost" in said
    assert "restart 1 of 10" in said
    assert "restart 2" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in here)
    starts = [event.step for event in events(run) if isinstance(event, RunStarted)]
    saved = [event.step for event in events(run) if isinstance(event, CheckpointSaved)]
    steps = [event.step for event in events(run) if isinstance(event, StepDone)]
    assert starts[1] > 0
    assert starts[1] in saved
    assert steps == list(range(1, saved[-1] + 1))


def test_a_port_of_another_program_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        place = f"127.0.0.1:{other.getsockname()[1]}"
        done = forked(tmp_path, "train", "--nnodes=2", f"--rdzv-endpoint={place}", "--steps=1")
    assert done.returncode == SETTINGS
    assert "is used by another program" in done.stderr


def test_machines_need_a_place_to_meet(tmp_path: Path) -> None:
    done = forked(tmp_path, "train", "--nnodes=2", "--steps=1")
    assert done.returncode == SETTINGS
    assert "--rdzv-endpoint HOST:PORT" in done.stderr
    unknown = f"--rdzv-endpoint=nowhere.invalid:{free_port()}"
    done = forked(tmp_path, "train", "--nnodes=2", unknown, "--steps=1")
    assert done.returncode == SETTINGS
    assert "cannot reach the rendezvous nowhere.invalid" in done.stderr


@pytest.fixture
def _interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface that a process chooses when it joins is not that of the tests after it."""
    monkeypatch.setenv(VARIABLE, "")


@pytest.mark.usefixtures("_interface")
@pytest.mark.parametrize(("again", "code"), [({}, SETTINGS), ({AGAIN: "1"}, LOST)])
def test_processes_that_cannot_meet_are_started_again_only_if_they_could(
    monkeypatch: pytest.MonkeyPatch, again: dict[str, str], code: int
) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in {**address, "LOCAL_WORLD_SIZE": "2", **again}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(join, "CONNECT_SECONDS", 0.2)
    with (
        pytest.raises(CpulmError, match="cannot reach the other processes of the run") as error,
        joined(),
    ):
        pass
    assert error.value.exit_code == code


@pytest.mark.usefixtures("_interface")
def test_torchrun_that_names_a_machine_which_others_do_not_know_is_told_to_give_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": str(free_port()), "RANK": "1"}
    for name, value in {**address, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "lab"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(join, "CONNECT_SECONDS", 0.2)
    with pytest.raises(CpulmError, match="cannot reach the other processes of the run") as error, joined():
        pass
    assert "nowhere.invalid is the name of the machine" in error.value.hint
    assert "--local-addr" in error.value.hint


@pytest.mark.usefixtures("_interface")
def test_a_connection_that_gloo_waits_for_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo does so if the other process connects to an address of its own."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore  # torch.distributed does not list it

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in {**address, "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(join, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(join, "_LEAST_SECONDS", 0.1)
    monkeypatch.setattr(join, "_reached", lambda address, reach: (HashStore(), 0, 2))
    monkeypatch.setattr(join, "_introduced", lambda store, rank, size, has_run: (0, []))
    end = threading.Event()
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: end.wait())
    with (
        pytest.raises(CpulmError, match=r"cannot reach the other processes .* no connection within"),
        joined(),
    ):
        pass
    end.set()


@pytest.mark.usefixtures("_interface")
@pytest.mark.parametrize(("again", "code"), [({}, SETTINGS), ({AGAIN: "1"}, LOST)])
def test_a_main_process_that_answers_nothing_is_lost_if_it_has_answered_before(
    monkeypatch: pytest.MonkeyPatch, again: dict[str, str], code: int
) -> None:
    monkeypatch.setattr(join, "CONNECT_SECONDS", -4.5)  # so that half a second is left
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent.getsockname()[1])}
        for name, value in {**address, "RANK": "1", "WORLD_SIZE": "2", **again}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(CpulmError, match="does not answer as the rendezvous") as error:
            join._reached(f"127.0.0.1:{address['MASTER_PORT']}", timedelta(seconds=30))
    assert error.value.exit_code == code
