"""Does a second generation pay? One long training against two shorter ones, the second taught by the first.

    python benchmarks/generations.py --text wikitext2-valid.txt [--seeds 1,2,3] [--steps 600]
        [--try 0.5,1 --try 0.7,2 ...] [--threads 1] >> results.jsonl
    python benchmarks/generations.py --table results.jsonl

Trains on the first 100 kB of a text, which is seen many times, and validates on its last 50 kB. For
each seed: one run of all steps; a teacher of half of them; and for each WEIGHT,TEMPERATURE a student of
as many steps as take the other half of the time. ``--cost`` says how much longer the student's steps
take. One line of JSON per run. The table has the best loss of each kind of run and its difference from
the one long run with the same seed: mean, and standard deviation over the seeds. A pair is as good as
the better of its two models.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpulm.events import Event, Listener, StepDone, Validated
from cpulm.settings.resolve_settings import resolve
from cpulm.training import run as runs

SETTINGS = (
    "model.n_layer=3",
    "model.n_head=2",
    "model.n_embd=128",
    "model.block_size=64",
    "model.dropout=0.2",
    "data.vocab_size=1024",
    "train.micro_batch_size=16",
    "train.lr=0.01",
    "train.muon_lr=0.01",
    "train.weight_decay=0.5",
    "train.warmup_steps=20",
    "train.decay_fraction=0.6",
    "train.patience=0",
    "sample.max_new_tokens=0",
    "checkpoint.keep=0",
    "log.layer_stats_every=0",
    "runtime.compile=off",
    "runtime.allow_sleep=true",
)
TRAIN_BYTES, VAL_BYTES = 100_000, 50_000
VALIDATIONS = 6


def train(text: Path, out: Path, seed: int, steps: int, threads: int, *more: str) -> dict[str, Any]:
    """Train one model in ``out`` and return its losses."""
    settings = resolve(
        environ=os.environ,
        assignments=[
            *SETTINGS,
            f"data.source={text}",
            f"data.val_source={text.with_suffix('.val')}",
            f"train.seed={seed}",
            f"train.steps={steps}",
            f"eval.every={max(1, steps // VALIDATIONS)}",
            f"runtime.threads={threads}",
            *more,
        ],
    )
    events: list[Event] = []

    @contextmanager
    def record(_: runs.RecordStart) -> Iterator[Listener]:
        yield events.append

    runs.train(settings, out, show=lambda _: None, record=record)
    done = [event for event in events if isinstance(event, StepDone)]
    validated = [event for event in events if isinstance(event, Validated)]
    return {
        "text": text.stem,
        "seed": seed,
        "steps": steps,
        "passes": done[-1].epoch,
        "losses": [event.loss for event in validated],
        "best": min(event.loss for event in validated),
        "bits_per_byte": min(event.bits_per_byte for event in validated),
        "step_seconds": statistics.median(event.step_seconds for event in done),
    }


def compare(text: Path, seed: int, arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Train one seed's models, and yield what each reached."""
    steps, threads = arguments.steps, arguments.threads
    if not arguments.only_students:
        yield {"run": "one", **train(text, folder / f"one-{text.stem}-{seed}", seed, steps, threads)}
    teacher = folder / f"teacher-{text.stem}-{seed}"
    first = train(text, teacher, seed, steps // 2, threads)
    yield {"run": "teacher", **first}
    for tried in arguments.tries:
        weight, temperature = tried.split(",")
        more = (
            f"train.teacher={teacher}",
            f"train.teacher_weight={weight}",
            f"train.teacher_temperature={temperature}",
        )
        out = folder / f"student-{tried}-{text.stem}-{seed}"
        result = train(text, out, seed + 1, round(steps / 2 / arguments.cost), threads, *more)
        result["best"] = min(result["best"], first["best"])
        yield {"run": f"student {tried}", **result, "seed": seed}


def cut(source: Path, folder: Path) -> Path:
    """Write the first part of a text to train on and its last part to validate on."""
    data, train_text = source.read_bytes(), folder / f"{source.stem}.txt"
    for path, part in ((train_text, data[:TRAIN_BYTES]), (train_text.with_suffix(".val"), data[-VAL_BYTES:])):
        path.write_text(part.decode("utf-8", "ignore"), encoding="utf-8", newline="")
    return train_text


def table(path: Path) -> None:
    """Print each kind of run with its difference from the one long run of the same seed and text."""
    best: dict[tuple[str, str, int], dict[int, float]] = defaultdict(dict)
    seconds: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for line in path.read_text().splitlines():
        one = json.loads(line)
        key = one["text"], one["run"], one["steps"]
        best[key][one["seed"]] = one["best"]
        seconds[key].append(one["steps"] * one["step_seconds"])
    print("| text | run | steps | seconds | best loss | difference from one run |")
    print("|---|---|---|---|---|---|")
    for (text, name, steps), losses in sorted(best.items()):
        (base,) = (found for (other, kind, _), found in best.items() if (other, kind) == (text, "one"))
        apart = [loss - base[seed] for seed, loss in losses.items() if seed in base]
        mean = statistics.mean(losses.values())
        spread = f" ± {statistics.stdev(apart):.4f}" if len(apart) > 1 else ""
        print(
            f"| {text} | {name} | {steps} | {statistics.mean(seconds[text, name, steps]):.0f} "
            f"| {mean:.4f} | {statistics.mean(apart):+.4f}{spread} ({len(apart)}) |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", type=Path, action="append", default=[], help="a file; repeatable")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=600, help="of the one long run")
    parser.add_argument(
        "--cost", type=float, default=1.33, help="a student's step, in steps without a teacher"
    )
    parser.add_argument("--try", dest="tries", action="append", metavar="WEIGHT,TEMPERATURE", default=[])
    parser.add_argument("--only-students", action="store_true", help="leave out the one long run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, help="print the table of these results; train nothing")
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.table)
        return
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds.split(","):
            for source in arguments.text:
                text = cut(source, Path(folder))
                for result in compare(text, int(seed), arguments, Path(folder)):
                    print(json.dumps(result), flush=True)
                    print(result["run"], seed, f"{result['best']:.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
