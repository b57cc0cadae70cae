"""How far plans are from the runs that they lead to.

    python benchmarks/prediction.py --data builtin:python --data notes.txt --time 2m --time 10m

    python benchmarks/prediction.py --data notes.txt --time 2m --plan plans    # on an idle machine,
    python benchmarks/prediction.py --train plans/*.json                       # on a busy one

Plans each time for each text on this machine, trains the plan to its end, and puts the best loss beside the
expected one and its span. ``--plan`` writes plans to a folder. ``--train`` trains each of them for its number
of updates, which takes as long as a busy machine needs and gives the same loss, and adds the result to the
file. Only one generation is trained: the expected loss is that of the first. ``--table`` shows such files.
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

from cpulm.atomic import write_text
from cpulm.benchmark.expectation import TextLevel, plan_in_words, trained_tokens
from cpulm.benchmark.planner import Planner
from cpulm.estimate.learning_law import Expectation
from cpulm.events import Event, StepDone, Validated
from cpulm.settings import HORIZONS, Settings, changed
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


def predict(data: str, time: str) -> dict[str, Any]:
    """Plan a run."""
    flags = {"data.source": [data], "train.max_time": time, "sample.max_new_tokens": 0}
    planner = Planner(
        lambda planned: resolve(AUTO, planned=planned, environ=os.environ, flags=flags),
        show=_quiet,
        should_stop=lambda: False,
    )
    plan = planner.plan()
    settings = plan.best.settings
    ready = runs.prepare_run(settings, show=_quiet, should_stop=lambda: False, block_is_wish=True)
    level = TextLevel.of(ready.tokens)
    expected, tokens = level.expected_of_run(plan, ready), trained_tokens(plan, ready, level)
    return {
        "data": data,
        "time": time,
        "n_layer": settings.model.n_layer,
        "n_embd": settings.model.n_embd,
        "step_seconds": ready.plan.step_seconds,
        "tokens": tokens,
        "passes": tokens / len(ready.tokens.train),
        "text": (level.curve.level, level.curve.slope),
        "expected": expected.loss,
        "low": expected.low,
        "high": expected.high,
        "plan": plan_in_words(plan, ready, level),
        "settings": settings.model_dump(mode="json"),
    }


def train(prediction: dict[str, Any], *, at_steps: bool) -> dict[str, Any]:
    """Train a plan and compare."""
    settings = Settings.model_validate(prediction["settings"])
    if at_steps:
        steps = max(1, round(prediction["tokens"] / settings.tokens_per_step))
        horizon = {**dict.fromkeys(HORIZONS), "steps": steps, "patience": 10, "generations": 1}
        settings = changed(settings, train=changed(settings.train, **horizon))
    expected = Expectation(*(prediction[key] for key in ("expected", "low", "high")))
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        runs.train(
            settings,
            Path(folder) / "run",
            show=events.append,
            record=lambda _: nullcontext(_quiet),
            block_is_wish=True,
        )
    return {**prediction, **held_against(expected, events)}


def _quiet(_: Event) -> None: ...


def _show(results: list[dict[str, Any]]) -> None:
    table = [
        [
            Path(one["data"]).name,
            one["time"],
            f"{one['n_layer']} x {one['n_embd']}",
            f"{one['tokens'] / 1e6:.2f} M",
            f"{one['passes']:.1f}",
            f"{one['expected']:.3f} ({one['low']:.2f} to {one['high']:.2f})",
            f"{one['bits_per_byte']:.3f}" if "bits_per_byte" in one else "",
            {None: "", True: "yes", False: "no"}[one.get("within")],
        ]
        for one in results
    ]
    columns = ("text", "time", "model", "tokens", "passes", "expected bits per byte", "came to", "within")
    Console(width=110).print(rows("Plans and runs", columns, table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", action="append", default=[], help="repeatable")
    parser.add_argument("--time", action="append", default=[], help="repeatable")
    parser.add_argument("--plan", type=Path, metavar="FOLDER", help="write the plans there; train nothing")
    parser.add_argument("--train", type=Path, nargs="+", default=[], metavar="FILE", help="train plans")
    parser.add_argument("--table", type=Path, nargs="+", default=[], metavar="FILE", help="show them")
    asked = parser.parse_args()
    results = [json.loads(path.read_text()) for path in asked.table]
    for path in asked.train:
        results.append(train(json.loads(path.read_text()), at_steps=True))
        write_text(path, json.dumps(results[-1]))
    for time in asked.time:
        for data in asked.data:
            planned = predict(data, time)
            if asked.plan:
                asked.plan.mkdir(parents=True, exist_ok=True)
                write_text(asked.plan / f"{time}-{Path(data).stem}.json", json.dumps(planned))
            results.append(planned if asked.plan else train(planned, at_steps=False))
    _show(results)


if __name__ == "__main__":
    main()
