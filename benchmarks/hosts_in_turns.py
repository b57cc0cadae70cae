"""Efficiency of ``sync`` on hosts in network namespaces: updates alone and together, in turns. Needs root.

    python benchmarks/hosts_in_turns.py [--preset 6x256] [--link 1gbit] [--sent-as none,bf16,int8]
        [--hosts 2] [--rows 16] [--updates 6] [--set KEY=VALUE ...]

Every host has one core, and trains ``--rows`` rows of an update on random tokens. In turns it does an update
by itself, while the others do the same, and one with the others for each way in which gradients are sent.
So a minute in which the machine is slow slows all of them. Efficiency is the mean time of an update alone,
over all hosts, divided by that of one together. ``benchmarks/hosts.py`` measures whole runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import torch
from network_hosts import link_named, network, why_not

from cpulm.distributed.join import joined
from cpulm.distributed.world import SOLO, World
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.update import StepTimer, TrainingParts, training_update
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.training.build import build_random_parts

PORT = 29500
CHARACTERS = 65
ALONE = "alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="6x256")
    parser.add_argument("--link", default="1gbit")
    parser.add_argument("--sent-as", default="none,bf16,int8")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    given = parser.parse_args()
    if "RANK" in os.environ:
        with joined() as world:
            work(given, world)
        return
    if reason := why_not():
        raise SystemExit(f"hosts cannot be made here: {reason}")
    with network(given.hosts, link_named(given.link)) as hosts:
        environ = {**os.environ, "MASTER_ADDR": hosts[0].address, "MASTER_PORT": str(PORT)}
        environ |= {"WORLD_SIZE": str(given.hosts), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        environ |= {"CPULM_START": uuid.uuid4().hex}
        command = [sys.executable, *sys.argv]
        processes: list[subprocess.Popen[bytes]] = [
            host.start(command, env={**environ, "RANK": str(rank)}) for rank, host in enumerate(hosts)
        ]
        if sum(process.wait() != 0 for process in processes):  # waits for all
            raise SystemExit("a host failed")


def work(given: argparse.Namespace, world: World) -> None:
    """Do updates in turns; the main process prints a line for each way."""
    parts = {ALONE: built(given, SOLO, "none")}
    parts |= {sent_as: built(given, world, sent_as) for sent_as in given.sent_as.split(",")}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(given.updates + 1):  # the first one is not counted
        for name, (one, runtime) in parts.items():
            world.agree(False)
            began = time.perf_counter()
            training_update(one, [number], runtime, 1.0, StepTimer())
            if name != ALONE:  # together an update lasts until the slowest has done it
                world.agree(False)
            seconds[name] += [time.perf_counter() - began] if number else []
    everyone = world.gather(seconds)
    if not world.is_main:
        return
    alone = statistics.mean(second for host in everyone for second in host[ALONE])
    for name in parts:
        mean = statistics.mean(second for host in everyone for second in host[name])
        print(
            f"{given.preset}, {given.link}, {name:6} {mean:6.3f} s an update, efficiency {alone / mean:6.1%}"
        )


def built(given: argparse.Namespace, world: World, sent_as: str) -> tuple[TrainingParts, Runtime]:
    """What an update of this host needs, alone or with the others."""
    rows = f"train.micro_batch_size={given.rows * world.size}"
    settings = resolve(
        preset=given.preset, assignments=[*given.assignments, rows, f"distributed.compression={sent_as}"]
    )
    runtime = choose_runtime(settings.runtime, read_machine(), settings.model)
    torch.set_num_threads(1)
    return build_random_parts(settings, settings.data.vocab_size or CHARACTERS, runtime, world), runtime


if __name__ == "__main__":
    main()
