"""Trains on two hosts in network namespaces while things go wrong, and counts how it ends. Needs root.

    python benchmarks/host_faults.py [--fault loss] [--fault killed] [--fault cut] [--mode sync]
        [--mode diloco] [--times 5] [--steps 240] [--cut-seconds 30]

- loss: 1 % of the packets are lost, and an answer takes 50 ms;
- killed: one host loses power at a random moment, and its command is typed again some seconds later;
- cut: one host is cut off for ``--cut-seconds`` and connected again.

Nothing is lost if the run ends with exit code 0 on both hosts, and its weights are those of a run without
faults, bit for bit. One line of JSON for each run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import torch
from network_hosts import LINKS, Host, network, why_not

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.run_dir import RunDir

PORT = 29400
SHAPE = ("model.n_layer=2", "model.n_head=2", "model.n_embd=64", "model.block_size=64", "data.tokenizer=byte")
QUIET = ("sample.max_new_tokens=0", "eval.every=1000000", "log.report=false", "checkpoint.every_steps=20")
MODES = {"sync": (), "diloco": ("distributed.mode=diloco", "train.outer_steps=10")}
LONGEST_SECONDS = 400


@dataclass
class Trial:
    """One run on two hosts; the first one writes it."""

    folder: Path
    hosts: list[Host]
    arguments: Sequence[str]

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / self.hosts[0].name / "run")

    def start(self, host: Host) -> subprocess.Popen[bytes]:
        """Type the command on a host."""
        own = self.folder / host.name
        own.mkdir(exist_ok=True)
        place = f"--set=distributed.rendezvous={self.hosts[0].address}:{PORT}"
        command = [sys.executable, "-m", "cpulm", "train", *self.arguments, place, "--out=run", "--headless"]
        environ = {**os.environ, "CPULM_CACHE": str(own / "cache"), "PYTHONUNBUFFERED": "1"}
        with (own / "log").open("ab") as log:
            return host.start([*command, "--resume"], cwd=own, stdout=log, stderr=log, env=environ)

    def wait_for_step(self, step: int) -> None:
        """Wait until the run's log has that step."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < deadline:
            if self.run.metrics.is_file() and f'"step":{step},' in self.run.metrics.read_text(
                encoding="utf-8"
            ):
                return
            time.sleep(0.1)
        raise TimeoutError(f"the run did not come to step {step}")


def trial(
    fault: str, mode: str, given: argparse.Namespace, seed: int
) -> tuple[list[int | None], Path | None]:
    """Train with a fault; return the exit codes and a copy of the last checkpoint."""
    chance = random.Random(seed)
    steps = str(given.steps)
    arguments = [given.data, "--preset", "4x192", "--steps", steps, "--set", "data.vocab_size=null"]
    arguments += [f"--set={one}" for one in (*SHAPE, *QUIET, *MODES[mode], "distributed.nodes=2")]
    link = LINKS["50ms-1%" if fault == "loss" else "1gbit"]
    with tempfile.TemporaryDirectory() as folder, network(2, link) as hosts:
        one = Trial(Path(folder), hosts, arguments)
        running = [one.start(host) for host in hosts]
        try:
            if fault in ("killed", "cut"):
                one.wait_for_step(chance.randrange(given.steps // 6, given.steps // 2))
                victim = chance.randrange(2) if fault == "cut" else 1
                if fault == "killed":
                    hosts[victim].kill()
                    time.sleep(5)
                    running[victim] = one.start(hosts[victim])
                else:
                    hosts[victim].cut_off()
                    time.sleep(given.cut_seconds)
                    hosts[victim].connect()
            codes: list[int | None] = [process.wait(LONGEST_SECONDS) for process in running]
        except (subprocess.TimeoutExpired, TimeoutError) as error:
            print(
                error, *((Path(folder) / host.name / "log").read_text()[-3000:] for host in hosts), sep="\n"
            )
            return [process.poll() for process in running], None
        if any(codes):
            print(*_logs(Path(folder), hosts), sep="\n")
        kept = Path(tempfile.mkstemp(suffix=".pt")[1])
        if one.run.latest.is_file():
            kept.write_bytes(one.run.latest.read_bytes())
        return codes, kept


def _logs(folder: Path, hosts: Sequence[Host]) -> list[str]:
    return [(folder / host.name / "log").read_text(encoding="utf-8")[-3000:] for host in hosts]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="builtin:python")
    parser.add_argument("--fault", action="append", choices=["loss", "killed", "cut"])
    parser.add_argument("--mode", action="append", choices=list(MODES))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--cut-seconds", type=float, default=30.0)
    given = parser.parse_args(arguments)
    if reason := why_not():
        raise SystemExit(f"hosts cannot be made here: {reason}")
    for mode in given.mode or list(MODES):
        _, reference = trial("none", mode, given, 0)
        assert reference is not None
        for fault in given.fault or ["loss", "killed", "cut"]:
            for number in range(given.times):
                began = time.monotonic()
                codes, kept = trial(fault, mode, given, number)
                same = kept is not None and not any(codes) and same_weights(reference, kept)
                seconds = round(time.monotonic() - began, 1)
                line = {"mode": mode, "fault": fault, "codes": codes, "same": same, "seconds": seconds}
                print(json.dumps(line), flush=True)


def same_weights(a: Path, b: Path) -> bool:
    one, other = checkpoints.load(a), checkpoints.load(b)
    weights = ((one.model_state[name], other.model_state[name]) for name in one.model_state)
    return one.step == other.step and all(torch.equal(*pair) for pair in weights)


if __name__ == "__main__":
    main()
