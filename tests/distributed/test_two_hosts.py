"""Runs over two hosts that know only each other's addresses, as docs/distributed.md says to start them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from forked import forked
from network_hosts import LINKS, Host, network, why_not
from small_runs import SMALL

from cpulm.events import StepDone, from_json

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why := why_not()), reason=str(why))]
TORCHRUN = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]


def command(how: str, number: int, hosts: Sequence[Host], line: list[str]) -> list[str]:
    """What is typed on the host of a number to train with the other one."""
    first, own = hosts[0].address, hosts[number].address
    if how == "cpulm":
        return ["cpulm", *line, "--nnodes=2", f"--rdzv-endpoint={first}:29400"]
    if how == "torchrun":
        place = [f"--node-rank={number}", f"--master-addr={first}", "--master-port=29400"]
    else:
        place = ["--rdzv-backend=c10d", f"--rdzv-endpoint={first}:29400", f"--local-addr={own}"]
        place += ["--rdzv-conf=is_host=1"] if number == 0 else []
    return [*TORCHRUN, *place, "-m", "cpulm", *line]


def losses(run: Path) -> list[float]:
    events = map(from_json, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return [event.loss for event in events if isinstance(event, StepDone)]


@pytest.mark.parametrize("how", ["cpulm", "torchrun", "torchrun with c10d"])
def test_two_hosts_train_as_one(tmp_path: Path, how: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{n} and {n + 1} are {2 * n + 1}." for n in range(400)))
    settings = (*SMALL, "model.dropout=0", "runtime.precision=fp32")
    line = ["train", str(text), "--headless", "--out=run", *(f"--set={one}" for one in settings)]
    assert forked(tmp_path, *line).returncode == 0
    with network(2, LINKS["1gbit"], names=False) as hosts:
        folders = [tmp_path / host.name for host in hosts]
        running: list[subprocess.Popen[bytes]] = []
        for number, folder in enumerate(folders):
            folder.mkdir()
            typed = [sys.executable, "-m", *command(how, number, hosts, line)]
            with (folder / "log").open("wb") as log:
                running.append(hosts[number].start(typed, cwd=folder, stdout=log, stderr=log))
        codes = [process.wait(200) for process in running]
    assert codes == [0, 0], (folders[0] / "log").read_text("utf-8")
    assert losses(folders[0] / "run") == pytest.approx(losses(tmp_path / "run"), rel=2e-5)
    assert not (folders[1] / "run").exists()
