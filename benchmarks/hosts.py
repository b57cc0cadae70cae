"""Trains on several hosts in network namespaces: tokens per second, efficiency, bytes sent, loss. Needs root.

    python benchmarks/hosts.py --preset 6x256 --link 1gbit --mode sync:bf16 --link 100mbit --mode diloco
        [--hosts 2] [--steps 60] [--rounds 12] [--set KEY=VALUE ...] [--same-batch] [--busy 0]

A mode may have a ``distributed.compression`` after a colon, or ``speed``: ``distributed.share=speed``.

Each host has one core of this machine, so at most as many hosts as cores give honest figures. First each host
trains by itself, all at the same time, because the cores share caches and memory: "one host" is their mean.
Efficiency is the tokens per second of k hosts over k times those of one. By default the batch
grows with the hosts, each of which trains the rows of one; with ``--same-batch`` they share those of one.
``--busy`` programs that never wait run on the core of the last host.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from network_hosts import Host, Link, link_named, network, why_not

from cpulm.run_dir import RunDir
from cpulm.settings.resolve_settings import resolve

PORT = 29400


@dataclass(frozen=True)
class Result:
    """Of one run: the median seconds of an update after the first round, and what each host sent in one."""

    update_seconds: float
    tokens_per_update: int
    bytes_per_update: float
    loss: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_update / self.update_seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="6x256")
    parser.add_argument("--data", default="builtin:python")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=12, help="updates in a round of diloco")
    parser.add_argument("--link", action="append", default=[])
    parser.add_argument("--mode", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--same-batch", action="store_true")
    parser.add_argument("--busy", type=int, default=0)
    given = parser.parse_args(arguments)
    if reason := why_not():
        raise SystemExit(f"hosts cannot be made here: {reason}")
    size = resolve(preset=given.preset, assignments=given.assignments).train.micro_batch_size
    base = [given.data, "--preset", given.preset, "--steps", str(given.steps)]
    base += [f"--set={one}" for one in (*QUIET, *given.assignments)]
    alone = trained(given.hosts, link_named("1gbit"), base, given.busy, together=False)
    print(f"{'link':9} {'mode':11} {'hosts':>5} {'tok/s':>9} {'efficiency':>10} {'MB sent':>8} {'loss':>8}")
    show("-", "-", 1, alone, alone)
    for link, mode in zip(given.link, given.mode, strict=True):
        several = [f"--set=train.micro_batch_size={size * (1 if given.same_batch else given.hosts)}"]
        kind, _, sent_as = mode.partition(":")
        several += [f"--set=distributed.mode={kind}"]
        how = "share" if sent_as == "speed" else "compression"
        several += [f"--set=distributed.{how}={sent_as}"] if sent_as else []
        several += [f"--set=train.outer_steps={given.rounds}"] if kind == "diloco" else []
        together = trained(given.hosts, link_named(link), [*base, *several], given.busy)
        show(link, mode, given.hosts, together, alone)


QUIET = ("sample.max_new_tokens=0", "eval.every=1000000", "log.report=false", "checkpoint.every=1h")


def show(link: str, mode: str, hosts: int, result: Result, alone: Result) -> None:
    efficiency = result.tokens_per_second / (hosts * alone.tokens_per_second)
    print(
        f"{link:9} {mode:11} {hosts:5} {result.tokens_per_second:9,.0f} {efficiency:10.1%} "
        f"{result.bytes_per_update / 1e6:8.3f} {result.loss:8.4f}",
        flush=True,
    )


def trained(count: int, link: Link, arguments: Sequence[str], busy: int, *, together: bool = True) -> Result:
    """Train on ``count`` hosts, one run of all or one of each; return the mean of the runs."""
    with tempfile.TemporaryDirectory() as folder, network(count, link) as hosts:
        place = f"--set=distributed.rendezvous={hosts[0].address}:{PORT}"
        command = [sys.executable, "-m", "cpulm", "train", *arguments, "--headless", "--out", "run"]
        command += [f"--set=distributed.nodes={count}", place] if together else []
        for _ in range(busy):
            hosts[-1].start([sys.executable, "-c", "while True: pass"])
        processes = [started(host, command, Path(folder)) for host in hosts]
        codes = [process.wait(600) for process in processes]
        if any(codes):
            logs = "\n".join((Path(folder) / host.name / "log").read_text()[-2000:] for host in hosts)
            raise SystemExit(f"exit codes {codes}\n{logs}")
        writers = hosts[:1] if together else hosts
        found = [measured(RunDir(Path(folder) / host.name / "run"), hosts) for host in writers]
    return replace(found[0], update_seconds=statistics.harmonic_mean([one.update_seconds for one in found]))


def started(host: Host, command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a command in a folder of the host's own, with its output in ``log``."""
    own = folder / host.name
    own.mkdir()
    with (own / "log").open("wb") as log:
        return host.start(
            command, cwd=own, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )


def measured(run: RunDir, hosts: Sequence[Host]) -> Result:
    events = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    later = steps[len(steps) // 2 :]
    seconds = (later[-1]["elapsed_seconds"] - steps[len(steps) // 2 - 1]["elapsed_seconds"]) / len(later)
    sent = statistics.mean(host.sent_bytes() for host in hosts)
    loss = [event["loss"] for event in events if event["event"] == "validated"][-1]
    return Result(seconds, steps[-1]["tokens"] // len(steps), sent / len(steps), loss)


if __name__ == "__main__":
    main()
