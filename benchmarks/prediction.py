"""How far a plan is from the run that it leads to.

    python benchmarks/prediction.py --data builtin:python [--time 10m] [--at-steps] [--pilots] [--json]

Plans the time on this machine and that text, trains the plan to its end, as a user would, and puts the best
loss beside the expected one and its span, and the tokens beside those that were planned. ``--at-steps``
trains for the planned number of updates instead of the time: for a machine whose speed changes meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cpulm.events import Event, StepDone, Validated
from cpulm.runlog.tail import Tail
from cpulm.settings import Settings
from cpulm.ui.tables import rows


def cpulm(*arguments: str) -> tuple[float, str]:
    """Seconds that the command took, and its stdout; what it says of its progress is let through.

    Raises:
        SystemExit: where it fails.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cpulm", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"cpulm {' '.join(arguments)} ended with {done.returncode}")
    return time.perf_counter() - began, done.stdout


def held_against(expected: dict[str, Any], events: list[Event]) -> dict[str, Any]:
    """Compare the best validation with its prediction.

    Args:
        expected: the best candidate of ``cpulm benchmark --max-time --json``.
        events: of metrics.jsonl.
    """
    found = [event.bits_per_byte for event in events if isinstance(event, Validated)]
    return {
        **expected,
        "bits_per_byte": min(found),
        "last_bits_per_byte": found[-1],
        "within": expected["expected_low"] <= min(found) <= expected["expected_high"],
        "tokens_trained": max(event.tokens for event in events if isinstance(event, StepDone)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--time", default="10m")
    parser.add_argument("--at-steps", action="store_true", help="train for the planned updates, not the time")
    parser.add_argument("--pilots", action="store_true", help="plan with pilots")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        plan, out = str(Path(name) / "plan.yaml"), Path(name) / "run"
        how = ["--data", asked.data, "--max-time", asked.time, "--out", plan, "--json"]
        planning, output = cpulm("benchmark", *how, *(["--pilots"] if asked.pilots else []))
        found = json.loads(output)
        steps = round(found["best"]["tokens"] / Settings.model_validate(found["settings"]).tokens_per_step)
        until = ["--steps", str(steps), "--patience", "10"] if asked.at_steps else []
        training, _ = cpulm("train", "--config", plan, *until, "--out", str(out), "--headless")
        events = list(Tail(out / "metrics.jsonl").new_events())
    result = held_against(found["best"], events)
    result |= {"data": asked.data, "time": asked.time, "steps": steps}
    result |= {"planning_seconds": planning, "training_seconds": training, "plan": found["lines"]}
    if asked.json:
        print(json.dumps(result))
        return
    span = f"({result['expected_low']:.3f} to {result['expected_high']:.3f})"
    table = [
        ("bits per byte", f"{result['expected_bits_per_byte']:.3f} {span}", f"{result['bits_per_byte']:.3f}"),
        ("tokens", f"{result['tokens'] / 1e6:.2f} M", f"{result['tokens_trained'] / 1e6:.2f} M"),
    ]
    title = f"{result['n_layer']} x {result['n_embd']}, {result['params_total'] / 1e6:.1f} M parameters"
    Console().print(rows(title, ("", "expected", "came to"), table))


if __name__ == "__main__":
    main()
