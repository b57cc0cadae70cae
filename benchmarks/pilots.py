"""Finds the best settings of a preset by short runs, compared by validation loss.

    python benchmarks/pilots.py --preset 6x256 --fraction 0.125 \
        --try train.lr=0.006,0.012,0.024 --try train.muon_lr=0.01,0.02 [--seeds 1,2] [--jobs 1] [--json]

Each combination is trained by ``cpulm train`` for ``--fraction`` of the preset's steps, with its schedule
drawn together to that horizon. The steps are what is equal, so that other work on the machine changes how
long a pilot takes and not what it says; where a tried setting changes the tokens in a step, the steps
change to keep the tokens equal. Validation batches are the preset's unless ``--set`` says otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cpulm.events import Validated
from cpulm.runlog.find_event import last_event
from cpulm.settings.resolve_settings import resolve
from cpulm.ui.tables import rows


def pilot(preset: str, fraction: float, assignments: list[str], threads: int, folder: Path) -> dict[str, Any]:
    """Train one combination; return its last validation and its settings."""
    whole = resolve(preset=preset, assignments=())
    settings = resolve(preset=preset, assignments=assignments)
    assert whole.train.steps is not None
    tokens = whole.train.steps * whole.tokens_per_step * fraction
    steps = max(1, round(tokens / settings.tokens_per_step))
    out = folder / "_".join(assignments).replace("/", "-")
    command = [sys.executable, "-m", "cpulm", "train", "--preset", preset, "--device", "cpu", "--headless"]
    command += ["--steps", str(steps), "--threads", str(threads), "--no-compile", "--out", str(out)]
    command += ["--set", "sample.max_new_tokens=0", "--set", f"eval.every={steps}"]
    for assignment in assignments:
        command += ["--set", assignment]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result: dict[str, Any] = {"settings": assignments, "steps": steps, "loss": None, "bits_per_byte": None}
    if done.returncode:
        return {**result, "error": done.stderr.strip().splitlines()[-2:]}
    last = last_event(out / "metrics.jsonl", Validated)
    assert last is not None, "no validation"
    for file in out.glob("*.pt"):
        file.unlink()
    return {**result, "loss": last.loss, "bits_per_byte": last.bits_per_byte, "tokens": last.tokens}


def combinations(tries: list[str], fixed: list[str], seeds: list[str]) -> list[list[str]]:
    """Every combination of the values tried, as assignments."""
    axes = []
    for tried in tries:
        name, _, values = tried.partition("=")
        axes.append([f"{name}={value}" for value in values.split(",")])
    axes.append([f"train.seed={seed}" for seed in seeds])
    return [[*fixed, *chosen] for chosen in itertools.product(*axes)]


def main() -> None:
    """Run the pilots, print each as it ends and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="4x192")
    parser.add_argument("--fraction", type=float, default=0.125, help="part of the preset's tokens")
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="KEY=V1,V2")
    parser.add_argument("--set", dest="fixed", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", default="1337")
    parser.add_argument("--jobs", type=int, default=1, help="concurrent pilots")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of each pilot")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    chosen = combinations(arguments.tries, arguments.fixed, arguments.seeds.split(","))

    def run(assignments: list[str]) -> dict[str, Any]:
        result = pilot(arguments.preset, arguments.fraction, assignments, arguments.threads, Path(folder))
        print(json.dumps(result), file=sys.stderr, flush=True)
        return result

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(run, chosen))
    results.sort(key=lambda result: result["loss"] if result["loss"] is not None else float("inf"))
    if arguments.json:
        print(json.dumps({"preset": arguments.preset, "fraction": arguments.fraction, "results": results}))
        return
    from rich.console import Console

    columns = ["settings", "steps", "loss", "bits/byte"]
    table = [
        [" ".join(r["settings"]), str(r["steps"]), f"{r['loss']:.4f}", f"{r['bits_per_byte']:.4f}"]
        if r["loss"] is not None
        else [" ".join(r["settings"]), str(r["steps"]), "failed", " ".join(r["error"])]
        for r in results
    ]
    Console().print(rows(f"{arguments.preset}, {arguments.fraction:g} of its tokens", columns, table))


if __name__ == "__main__":
    main()
