"""How long ``cpulm --help`` and ``cpulm sysinfo`` take, beside the help of an empty typer program.

The programs run in turns, so that a busy machine slows all of them alike. Run from the project's root:

    python benchmarks/startup.py --rounds 15
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY = '''\
import typer

app = typer.Typer()


@app.command()
def f(name: str = "x") -> None:
    """Nothing."""


app()
'''
LIMIT = 2.5
"""Starts of the empty program that the two commands may take."""


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def seconds(command: list[str]) -> float:
    """Wall time of one run of ``command``.

    Raises:
        subprocess.CalledProcessError: where the command fails.
    """
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT)
    return time.perf_counter() - began


def measure(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every command in every round; a first round that warms the disk's cache is not kept."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            duration = seconds(command)
            if number:
                taken[name].append(duration)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="runs of each program (default 15)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY, encoding="utf-8")
        commands = {
            "empty typer --help": [sys.executable, str(empty), "--help"],
            "cpulm --help": [sys.executable, "-m", "cpulm", "--help"],
            "cpulm sysinfo": [sys.executable, "-m", "cpulm", "sysinfo"],
            "cpulm sysinfo --json": [sys.executable, "-m", "cpulm", "sysinfo", "--json"],
        }
        taken = measure(commands, rounds)
    base = statistics.median(taken["empty typer --help"])
    python = sys.version.split()[0]
    print(f"{rounds} rounds in turns, Python {python}, limit: {LIMIT} starts of the empty program")
    print(f"{'program':24}{'median':>9}{'least':>9}{'ratio':>8}")
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"{name:24}{median:8.3f}s{min(times):8.3f}s{median / base:8.2f}")


if __name__ == "__main__":
    main()
