"""Start times of ``cpulm --help`` and ``cpulm sysinfo``, compared with an empty typer program.

The programs run in turns, so that a busy machine slows all of them alike. Run from the project's root:

    python benchmarks/startup.py --rounds 15

With ``--first-step`` instead: from the start of ``cpulm train`` to the end of its first update, for the
presets tiny and small on token folders of the Python library's sources that are there already. What a first
run has to do besides, compile the kernels and measure fp32 against int8, is done in a round that is not kept.
Events come as JSON lines; the dashboard is not drawn.

    python benchmarks/startup.py --first-step --rounds 5
"""

from __future__ import annotations

import argparse
import json
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
"""Multiples of the empty program's start that the two commands may take."""


FIRST_STEP_LIMIT = 6.0
"""Seconds from the start of ``cpulm train`` to the end of the first update."""

MOMENTS = ("measuring a step", "step measured", "run started", "first update done")

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
    """Seconds of every command in every round; a first round, which warms the disk cache, is discarded."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            duration = seconds(command)
            if number:
                taken[name].append(duration)
    return taken


def until_first_step(preset: str, tokens: Path, out: Path) -> dict[str, float]:
    """Seconds from the start of ``cpulm train`` to each of the :data:`MOMENTS`; the run is killed then.

    Raises:
        RuntimeError: where the run ends before.
    """
    command = [sys.executable, "-m", "cpulm", "train", "--json", "--preset", preset]
    command += ["--data", str(tokens), "--out", str(out)]
    began, moments = time.time(), dict[str, float]()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            name = {"run_started": "run started", "step": "first update done"}.get(event["event"])
            if event["event"] == "progress" and event["stage"] == "measuring a step":
                name = "step measured" if event["finished"] else "measuring a step"
            if name is not None:
                moments[name] = event["time"] - began
            if event["event"] == "step":
                process.kill()
                return moments
    raise RuntimeError(f"{' '.join(command)} ended before its first update")


def measure_first_steps(rounds: int) -> None:
    """Print the median seconds to each moment, for the presets in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"4x192": "2048", "6x256": "4096"}
        taken: dict[str, list[dict[str, float]]] = {preset: [] for preset in sizes}
        for preset, size in sizes.items():
            tokenize = ["tokenize", "builtin:python", "--out", str(folder / preset), "--vocab-size", size]
            seconds([sys.executable, "-m", "cpulm", *tokenize])
        for number in range(rounds + 1):
            for preset in sizes:
                moments = until_first_step(preset, folder / preset, folder / f"{preset}-{number}")
                if number:
                    taken[preset].append(moments)
    print(f"{rounds} rounds in turns, limit: {FIRST_STEP_LIMIT} s; median seconds from the start")
    print(f"{'moment':20}" + "".join(f"{preset:>24}" for preset in taken))
    for moment in MOMENTS:
        cells = []
        for measured in taken.values():
            times = [moments[moment] for moments in measured]
            cells.append(f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})")
        print(f"{moment:20}" + "".join(f"{cell:>24}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="runs of each program (default 15, first steps 5)")
    parser.add_argument(
        "--first-step", action="store_true", help="the time until the end of the first update"
    )
    options = parser.parse_args()
    if options.first_step:
        measure_first_steps(options.rounds or 5)
    else:
        measure_starts(options.rounds or 15)


def measure_starts(rounds: int) -> None:
    """Print the seconds of each program, and the ratio to the empty one."""
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
