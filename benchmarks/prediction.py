"""How far plans are from the runs that they lead to.

    python benchmarks/prediction.py --data builtin:python --data notes.txt --time 2m --time 10m [--at-steps]

Plans each time for each text on this machine, trains the plan to its end, and puts the best loss beside the
expected one and its span. ``--at-steps`` trains for the planned number of updates instead of the time: for a
machine whose speed changes meanwhile. One line of JSON per run with ``--json``, else a table.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from cpulm.benchmark.expectation import TextLevel, plan_in_words, trained_tokens
from cpulm.benchmark.planner import Planner
from cpulm.estimate.learning_law import Expectation
from cpulm.events import Event, StepDone, Validated
from cpulm.settings import HORIZONS, changed
from cpulm.settings.resolve_settings import AUTO, resolve
from cpulm.training import run as runs
from cpulm.ui.tables import rows


def held_against(expected: Expectation, events: list[Event]) -> dict[str, Any]:
    """Compare the best validation of a run with its prediction."""
    found = [event.bits_per_byte for event in events if isinstance(event, Validated)]
    return {
        "expected": expected.loss,
        "low": expected.low,
        "high": expected.high,
        "bits_per_byte": min(found),
        "last_bits_per_byte": found[-1],
        "within": expected.low <= min(found) <= expected.high,
        "tokens_trained": max(event.tokens for event in events if isinstance(event, StepDone)),
    }


def predict_and_train(data: str, time: str, *, at_steps: bool, folder: Path) -> dict[str, Any]:
    """Plan a run, train it, and compare."""

    def quiet(_: Event) -> None: ...

    flags = {"data.source": [data], "train.max_time": time, "sample.max_new_tokens": 0}
    planner = Planner(
        lambda planned: resolve(AUTO, planned=planned, environ=os.environ, flags=flags),
        show=quiet,
        should_stop=lambda: False,
    )
    plan = planner.plan()
    settings = plan.best.settings
    ready = runs.prepare_run(settings, show=quiet, should_stop=lambda: False, block_is_wish=True)
    level = TextLevel.of(ready.tokens)
    if at_steps:
        steps = max(1, round(trained_tokens(plan, ready) / settings.tokens_per_step))
        train = {**dict.fromkeys(HORIZONS), "steps": steps, "patience": 10}
        settings = changed(settings, train=changed(settings.train, **train))
    events: list[Event] = []
    runs.train(
        settings,
        folder / "run",
        show=events.append,
        record=lambda _: nullcontext(quiet),
        block_is_wish=True,
    )
    return {
        "data": data,
        "time": time,
        "n_layer": settings.model.n_layer,
        "n_embd": settings.model.n_embd,
        "tokens": trained_tokens(plan, ready),
        **held_against(level.expected_of_run(plan, ready), events),
        "plan": plan_in_words(plan, ready, level),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="append", required=True, help="repeatable")
    parser.add_argument("--time", action="append", required=True, help="repeatable")
    parser.add_argument("--at-steps", action="store_true", help="train for the planned updates, not the time")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results = []
    for time in asked.time:
        for data in asked.data:
            with tempfile.TemporaryDirectory() as folder:
                results.append(predict_and_train(data, time, at_steps=asked.at_steps, folder=Path(folder)))
            if asked.json:
                print(json.dumps(results[-1]), flush=True)
    if asked.json:
        return
    table = [
        [
            Path(one["data"]).name,
            one["time"],
            f"{one['n_layer']} x {one['n_embd']}",
            f"{one['tokens'] / 1e6:.2f} M",
            f"{one['expected']:.3f} ({one['low']:.2f} to {one['high']:.2f})",
            f"{one['bits_per_byte']:.3f}",
            "yes" if one["within"] else "no",
        ]
        for one in results
    ]
    columns = ("text", "time", "model", "tokens", "expected bits per byte", "came to", "within")
    Console(width=110).print(rows("Plans and runs", columns, table))


if __name__ == "__main__":
    main()
