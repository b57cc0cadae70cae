"""Trains on two hosts in network namespaces while things go wrong, and counts how it ends. Needs root.

    python benchmarks/host_faults.py [--fault killed] [--mode sync] [--link 1gbit] [--times 5]
        [--steps 240] [--cut-seconds 120]

For every fault, mode and link, all of them unless some are named:

- none: two hosts train to the end;
- killed: a host, at random that where they meet or the other one, loses power; seconds later its command is
  typed again;
- cut: such a host is cut off for ``--cut-seconds`` and connected again.

Nothing is lost if the run ends with exit code 0 on both hosts, and its weights are those of a run on another
network without faults, bit for bit. One line of JSON for each run. The links are tried side by side: a small
model waits most of the time.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import torch
from forked import Forked, serve
from network_hosts import LINKS, Host, network, why_not

from cpulm.cache_dir import cache_folder
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.run_dir import RunDir

PORT = 29400
SHAPE = ("model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=32", "data.tokenizer=byte")
QUIET = (
    *("data.vocab_size=null", "sample.max_new_tokens=0", "eval.every=1000000", "log.report=false"),
    "checkpoint.every_steps=20",
)
MODES = {"sync": (), "diloco": ("distributed.mode=diloco", "train.outer_steps=10")}
FAULTS = ("none", "killed", "cut")
LONGEST_SECONDS = 900
BACK_SECONDS = 5


@dataclass
class Hosts:
    """Two hosts, the first of which writes the runs, and a process on each that is forked for the trials."""

    folder: Path
    hosts: Sequence[Host]
    given: argparse.Namespace

    def trial(self, fault: str, mode: str, seed: int) -> tuple[list[int], Path | None]:
        """Train with a fault; return the exit codes and the last checkpoint."""
        chance, steps = random.Random(seed), self.given.steps
        run = RunDir(self.folder / f"{mode}-{fault}-{seed}")
        running = [self._start(host, mode, run) for host in self.hosts]
        if fault != "none":
            _wait_for_step(run, chance.randrange(steps // 6, steps // 2))
            victim = chance.randrange(2)
            self.hosts[victim].cut_off()
            if fault == "killed":
                self.hosts[victim].kill()
            time.sleep(self.given.cut_seconds if fault == "cut" else BACK_SECONDS)
            self.hosts[victim].connect()
            if fault == "killed":
                running[victim] = self._start(self.hosts[victim], mode, run)
        codes = [_ended(process) for process in running]
        if any(codes):
            print(*(f"{log}:\n{log.read_text('utf-8')}" for log in self._logs(run)), file=sys.stderr)
        for host in self.hosts:
            host.kill()
        return codes, run.latest if run.latest.is_file() else None

    def _start(self, host: Host, mode: str, run: RunDir) -> Forked:
        """Type the command on a host; only the first one is given the folder of the run."""
        writes = host is self.hosts[0]
        settings = (*SHAPE, *QUIET, *MODES[mode], f"train.steps={self.given.steps}", "distributed.nodes=2")
        settings += (
            f"distributed.rendezvous={self.hosts[0].address}:{PORT}",
            f"distributed.run_id={run.path.name}",
        )
        log = self._logs(run)[0 if writes else 1]
        return Forked(
            self.folder / host.name,
            *("train", self.given.data, "--preset", "4x192", "--headless", "--resume"),
            f"--out={run.path if writes else run.path.name}",
            *(f"--set={one}" for one in settings),
            stdout=log,
            stderr=log,
            environ={"CPULM_CACHE": str(self.folder / host.name / "cache")},
            server=self.folder / host.name / "socket",
        )

    def _logs(self, run: RunDir) -> list[Path]:
        return [self.folder / f"{run.path.name}-{host.name}.log" for host in self.hosts]


@contextmanager
def two_hosts(given: argparse.Namespace, link: str) -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="cpulm-") as folder, network(2, LINKS[link]) as hosts:
        for host in hosts:
            own = Path(folder, host.name)
            (own / "cache").mkdir(parents=True)
            (own / "cache" / "kernels").symlink_to(cache_folder() / "kernels")
            host.stays.add(serve(own, host.start).pid)
        yield Hosts(Path(folder), hosts, given)


def _wait_for_step(run: RunDir, step: int) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        if run.metrics.is_file() and f'"step":{step},' in run.metrics.read_text("utf-8"):
            return
        time.sleep(0.05)
    raise TimeoutError(f"{run.path.name} did not come to step {step}")


def _ended(process: Forked) -> int:
    deadline = time.monotonic() + LONGEST_SECONDS
    while (code := process.poll()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError("a run did not end")
        time.sleep(0.1)
    return code


def same_weights(a: Path, b: Path) -> bool:
    one, other = checkpoints.load(a), checkpoints.load(b)
    weights = ((one.model_state[name], other.model_state[name]) for name in one.model_state)
    return one.step == other.step and all(torch.equal(*pair) for pair in weights)


def count(given: argparse.Namespace, link: str, references: dict[str, Path]) -> None:
    """All trials on one link, one after the other."""
    with two_hosts(given, link) as hosts:
        for number in range(given.first, given.first + given.times):
            for mode in given.mode or list(MODES):
                for fault in given.fault or FAULTS:
                    began = time.monotonic()
                    codes, kept = hosts.trial(fault, mode, number)
                    same = kept is not None and same_weights(references[mode], kept)
                    seconds = round(time.monotonic() - began, 1)
                    line = {"link": link, "mode": mode, "fault": fault, "number": number, "codes": codes}
                    print(json.dumps({**line, "same": same, "seconds": seconds}), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="builtin:python")
    parser.add_argument("--fault", action="append", choices=FAULTS)
    parser.add_argument("--mode", action="append", choices=list(MODES))
    parser.add_argument("--link", action="append", choices=list(LINKS))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first of the times")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--cut-seconds", type=float, default=120.0)
    given = parser.parse_args(arguments)
    if reason := why_not():
        raise SystemExit(f"hosts cannot be made here: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        references = {}
        with two_hosts(given, "1gbit") as hosts:
            for mode in given.mode or list(MODES):
                codes, kept = hosts.trial("none", mode, -1)
                assert kept is not None, codes
                references[mode] = Path(shutil.copy(kept, Path(folder, f"{mode}.pt")))
        links = given.link or list(LINKS)
        with ThreadPoolExecutor(len(links)) as pool:
            for done in [pool.submit(count, given, link, references) for link in links]:
                done.result()


if __name__ == "__main__":
    main()
