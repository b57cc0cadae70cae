"""How far `cpulm benchmark --max-time` is from the run that it recommends.

    python benchmarks/prediction.py --data builtin:python [--time 10m] [--preset small] [--json]

Plans the time with pilots on this machine and that text, trains the recommended plan to its end, as a user
would, and puts the last validation beside the expected loss and its span, and the tokens beside those that
were foreseen.
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
    """Compare the last validation with its prediction.

    Args:
        expected: the best candidate of ``cpulm benchmark --max-time --json``.
        events: of metrics.jsonl.
    """
    loss = [event.loss for event in events if isinstance(event, Validated)][-1]
    return {
        **expected,
        "loss": loss,
        "within": expected["expected_low"] <= loss <= expected["expected_high"],
        "tokens_trained": max(event.tokens for event in events if isinstance(event, StepDone)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--time", default="10m")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        plan, out = str(Path(name) / "plan.yaml"), Path(name) / "run"
        how = (
            "--preset",
            asked.preset,
            "--data",
            asked.data,
            "--max-time",
            asked.time,
            "--out",
            plan,
            "--json",
        )
        planning, output = cpulm("benchmark", *how)
        training, _ = cpulm("train", "--config", plan, "--out", str(out), "--headless")
        events = list(Tail(out / "metrics.jsonl").new_events())
    result = held_against(json.loads(output)["best"], events)
    result |= {"planning_seconds": planning, "training_seconds": training}
    if asked.json:
        print(json.dumps(result))
        return
    span = f"({result['expected_low']:.3f} to {result['expected_high']:.3f})"
    table = [
        ("loss, nats", f"{result['expected_loss']:.3f} {span}", f"{result['loss']:.3f}"),
        ("tokens", f"{result['tokens'] / 1e6:.2f} M", f"{result['tokens_trained'] / 1e6:.2f} M"),
    ]
    title = f"{result['n_layer']} x {result['n_embd']}, {result['params_total'] / 1e6:.1f} M parameters"
    Console().print(rows(title, ("", "expected", "came to"), table))


if __name__ == "__main__":
    main()
