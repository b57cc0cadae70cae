"""Checks that a run ends on time: the whole command, including validation and saving.

Each budget is given once as ``--max-time`` and once, as a moment of the wall clock, as ``--until``. What
counts is the whole process: from the moment it is started to the moment it is gone. Of that, loading the
libraries comes before ``--max-time`` begins, and unloading them after the run's last word, so the time of
that word is given too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.soak import small
from cpulm.events import StepDone, Validated
from cpulm.runlog.tail import Tail

BUDGETS = (30, 60, 120)
_MODEL = (
    "model.n_layer=2",
    "model.n_embd=64",
    "model.block_size=64",
    "train.micro_batch_size=8",
    "checkpoint.every_steps=null",
    "eval.every=250",
    "eval.batches=null",
    "sample.max_new_tokens=50",
    "train.steps=null",
)


def times(budgets: tuple[int, ...] = BUDGETS) -> dict[str, Any]:
    """Seconds requested and taken, for each budget."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small.own_cache(folder / "cache")
        settings = [f"--set={one}" for one in small.assignments(small.write_text(folder), *_MODEL)]
        rows = []
        for budget in budgets:
            for flag in ("--max-time", "--until"):
                rows.append(_row(folder / f"{flag[2:]}-{budget}", budget, flag, settings))
        return {"runs": rows}


def _row(out: Path, budget: int, flag: str, settings: list[str]) -> dict[str, Any]:
    # Wall-clock times have a resolution of one second, so the budget begins at a full one.
    time.sleep(1 - time.time() % 1)
    began = time.time()
    moment = datetime.fromtimestamp(round(began) + budget).strftime("%Y-%m-%d %H:%M:%S")
    given = f"{budget}s" if flag == "--max-time" else moment
    command = [sys.executable, "-m", "cpulm", "train", f"--out={out}", "--headless", f"{flag}={given}"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True)
    taken = time.time() - began
    if done.returncode != 0:
        raise SystemExit(f"{flag} {given} ended with {done.returncode}: {done.stderr[-500:]}")
    events = list(Tail(out / "metrics.jsonl").new_events())
    validations = [event.seconds for event in events if isinstance(event, Validated)]
    return {
        "flag": flag,
        "asked_seconds": budget,
        "taken_seconds": round(taken, 2),
        "last_word_seconds": round(events[-1].time - began, 2),
        "off_percent": round(100 * (taken / budget - 1), 2),
        "steps": max(event.step for event in events if isinstance(event, StepDone)),
        "validations": len(validations),
        "slowest_validation_seconds": round(max(validations), 2),
    }


def told(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    head = ("asked", "last word", "taken", "off", "steps", "validations")
    lines = ["{:<12} {:>7} {:>9} {:>9} {:>8} {:>7} {:>12}".format("", *head)]
    lines += [
        f"{row['flag']:<12} {row['asked_seconds']:>5} s {row['last_word_seconds']:>7.2f} s "
        f"{row['taken_seconds']:>7.2f} s "
        f"{row['off_percent']:>+6.2f} % {row['steps']:>7,} {row['validations']:>12}"
        for row in result["runs"]
    ]
    return lines
