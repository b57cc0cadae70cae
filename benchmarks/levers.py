"""Compares settings and candidates for settings on small texts that are seen many times, at equal updates.

    python benchmarks/levers.py --text tinyshakespeare.txt --text wikitext2-valid.txt --text builtin:python
        [--try decay=0.5 --try cautious=1.5 ...] [--seeds 1,2,3] [--steps 256] [--threads 1] [--kilobytes 100]
        [--set KEY=VALUE ...] >> results.jsonl
    python benchmarks/levers.py --table results.jsonl [--against decay=0.5]

Each run trains the model of SETTINGS on the first 100 kB of a text and is validated on its last 30 kB, at
eight moments. One line of JSON per run: the loss at each moment of the weights and of their average over 0.2,
which plans use; for ``decay`` also that of other averages. The table has, for each candidate and text, the
mean difference of the best loss from the basis with the same seed, and its standard error over the seeds.

Candidates, NAME=VALUE:

- decay: ``train.weight_decay``, whose effect is proportional to the rate;
- squared: a weight decay that is multiplied by the rate and by the rate's part of its peak;
- cautious: a weight decay that acts only where the update, too, brings the weight nearer to zero (Chen et
  al., "Cautious Weight Decay", 2025, https://arxiv.org/abs/2510.12402);
- order: ``fixed`` draws the windows in the same order and at the same offset in each epoch;
- momentum: Muon's momentum rises from this value to its own over the first third of the run;
- floor: ``train.min_lr_ratio``;
- norms, embedding: the rate of norms, of the embedding and the tied head, as a multiple of ``train.lr``;
- embedding_decay: a weight decay of the embedding, which has none;
- query, first_query: what the norm of the queries begins with in all layers, in the first one;
- falling, rising: the rate of the embedding falls to this multiple of ``train.lr`` over the first half of
  the run, or rises from it;
- rows: in the first third of the tokens an update has so many times fewer rows;
- outer: ``train.outer_steps``, with Nesterov momentum;
- beta2, momentum_end: AdamW's second moment, Muon's momentum.

All but ``decay`` itself use the weight decay that ``--decay`` gives.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpulm.data.loader import Loader, val_batch_count, val_batches
from cpulm.data.prepare import prepare
from cpulm.data.sources import builtin_python
from cpulm.evaluation.validation_loss import evaluate
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.update import StepTimer, TrainingParts, training_update
from cpulm.optim.build_optimizers import set_lr_scale
from cpulm.optim.schedule import lr_scale
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.training.build import build_parts

ROWS = 16
"""Of an update."""
SETTINGS = (
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=128",
    "model.block_size=64",
    "model.dropout=0.2",
    "data.vocab_size=1024",
    f"train.micro_batch_size={ROWS}",
    "train.lr=0.01",
    "train.muon_lr=0.01",
    "train.warmup_steps=20",
    "train.decay_fraction=0.6",
    "runtime.compile=off",
)
VAL_BYTES = 30_000
VALIDATIONS = 8
AVERAGES, PLANNED_AVERAGE = (0.05, 0.1, 0.2, 0.4), 0.2
"""Moving averages over about this part of the updates so far, and the one that plans use."""


@dataclass(frozen=True)
class Candidate:
    """A candidate and its value, as in the table at the top."""

    kind: str
    value: str

    @classmethod
    def parsed(cls, text: str) -> Candidate:
        kind, _, value = text.partition("=")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}={self.value}"

    def settings(self, decay: str) -> list[str]:
        """What differs in the settings."""
        names = {
            "floor": "train.min_lr_ratio",
            "beta2": "train.beta2",
            "momentum_end": "train.momentum",
            "outer": "train.outer_steps",
        }
        decay = self.value if self.kind in ("decay", "squared", "cautious") else decay
        own = [f"{names[self.kind]}={self.value}"] if self.kind in names else []
        if self.kind == "rows":
            own = [f"train.micro_batch_size={ROWS // int(self.value)}"]
        return [f"train.weight_decay={decay}", *own]

    def batches(self, steps: int) -> Iterator[range]:
        """The micro-batches of each update, of as many tokens in all as ``steps`` updates have."""
        parts = int(self.value) if self.kind == "rows" else 1
        at = 0
        while at < steps * parts:
            count = 1 if 3 * at < steps * parts else parts
            yield range(at, min(at + count, steps * parts))
            at += count


class Levers:
    """Applies a candidate that is no setting around each update."""

    def __init__(self, candidate: Candidate, parts: TrainingParts, settings: Settings) -> None:
        self.candidate, self.parts, self.train = candidate, parts, settings.train
        self._groups = [group for optimizer in parts.optimizers for group in optimizer.param_groups]
        self._decayed = [group for group in self._groups if group.get("weight_decay")]
        self._weights: list[list[Tensor]] = []
        if candidate.kind == "order":
            assert isinstance(parts.loader, Loader)
            starts_in = parts.loader._starts_in
            parts.loader._starts_in = lambda _, at: starts_in(0, at)  # type: ignore[method-assign, assignment]
        if candidate.kind in ("norms", "embedding", "embedding_decay", "falling", "rising"):
            factor = float(candidate.value) if candidate.kind in ("norms", "embedding") else 1.0
            self._apart(factor, vectors=candidate.kind == "norms")
        if candidate.kind == "embedding_decay":
            parts.optimizers[-1].param_groups[-1]["weight_decay"] = float(candidate.value)
        if candidate.kind in ("query", "first_query"):
            first = ".0." if candidate.kind == "first_query" else "."
            for name, weight in parts.model.named_parameters():
                if name.endswith("q_norm.weight") and f"blocks{first}" in name:
                    weight.data.fill_(float(candidate.value))

    def _apart(self, factor: float, *, vectors: bool) -> None:
        """Give AdamW's vectors, or its matrices, another rate; they are moved into a group of their own."""
        optimizer = self.parts.optimizers[-1]
        group = optimizer.param_groups[0]
        moved = [p for p in group["params"] if (p.ndim < 2) == vectors]
        group["params"] = [p for p in group["params"] if (p.ndim < 2) != vectors]
        rest = {key: value for key, value in group.items() if key != "params"}
        peak = rest["peak_lr"] * factor
        optimizer.add_param_group({**rest, "params": moved, "lr": peak, "peak_lr": peak})

    @torch.no_grad()
    def before(self, scale: float, progress: float) -> None:
        kind = self.candidate.kind
        if kind == "squared":
            for group in self._decayed:
                group["weight_decay"] = self.train.weight_decay * scale
        elif kind == "cautious":
            for group in self._decayed:
                group["weight_decay"] = 0.0
            self._weights = [[p.clone() for p in group["params"]] for group in self._decayed]
        elif kind == "falling":
            group = self.parts.optimizers[-1].param_groups[-1]
            group["lr"] *= 1 - (1 - float(self.candidate.value)) * min(1.0, 2 * progress)
        elif kind == "rising":
            group = self.parts.optimizers[-1].param_groups[-1]
            group["lr"] *= 1 - (1 - float(self.candidate.value)) * max(0.0, 1 - 2 * progress)
        elif kind == "momentum":
            low, high = float(self.candidate.value), self.train.momentum
            for group in self._groups:
                if "momentum" in group:
                    group["momentum"] = low + (high - low) * min(1.0, 3 * progress)

    @torch.no_grad()
    def after(self) -> None:
        for group, weights in zip(self._decayed, self._weights, strict=False):
            for p, old in zip(group["params"], weights, strict=True):
                shrinks = (old - p) * old > 0
                p.sub_(old * shrinks, alpha=group["lr"] * self.train.weight_decay)


class Averages:
    """Moving averages of the weights, one for each part of the run so far."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters: list[Tensor] = list(model.parameters())
        self._averages = {part: [p.detach().clone() for p in self._parameters] for part in AVERAGES}

    @torch.no_grad()
    def update(self, step: int) -> None:
        for part, averages in self._averages.items():
            torch._foreach_lerp_(averages, self._parameters, 1.0 / (1.0 + part * step))

    @torch.no_grad()
    def swapped(self, parts: Iterable[float]) -> Iterator[float]:
        """Put each of these averages into the model in turn."""
        raw = [p.clone() for p in self._parameters]
        for part in parts:
            torch._foreach_copy_(self._parameters, self._averages[part])
            yield part
        torch._foreach_copy_(self._parameters, raw)


def run(
    candidate: Candidate, text: Path, seed: int, steps: int, decay: str, more: list[str]
) -> dict[str, Any]:
    """Train one model and return its losses; ``more`` are settings."""
    began = time.perf_counter()
    settings = resolve(
        assignments=[
            *SETTINGS,
            *candidate.settings(decay),
            f"data.source={text}",
            f"data.val_source={text.with_suffix('.val')}",
            f"train.seed={seed}",
            f"train.steps={steps}",
            *more,
        ]
    )
    tokens = prepare(settings.data, emit=lambda _: None, should_stop=lambda: False)
    runtime = choose_runtime(settings.runtime, read_machine(), settings.model)
    parts = build_parts(settings, tokens, runtime)
    levers, averages = Levers(candidate, parts, settings), Averages(parts.model)

    def loss() -> float:
        block, rows = settings.model.block_size, settings.train.micro_batch_size
        count = val_batch_count(tokens.val, block, rows)
        batches = val_batches(tokens.val, block, rows)
        result = evaluate(parts.model, batches, count, emit=lambda _: None, should_stop=lambda: False)
        assert result is not None
        return result.loss

    losses, averaged = [], defaultdict(list)
    updates = list(candidate.batches(steps))
    moments = [round(updates[-1].stop * number / VALIDATIONS) for number in range(1, VALIDATIONS + 1)]
    for step, batches in enumerate(updates):
        update(parts, runtime, settings, levers, step, batches, batches.start / updates[-1].stop)
        averages.update(step + 1)
        if batches.stop >= moments[0]:
            del moments[0]
            losses.append(loss())
            for part in averages.swapped(AVERAGES if candidate.kind == "decay" else (PLANNED_AVERAGE,)):
                averaged[part].append(loss())
    nats = math.log(2) * tokens.bytes_per_token
    return {
        "candidate": str(candidate),
        "text": text.stem,
        "seed": seed,
        "steps": steps,
        "passes": steps * settings.tokens_per_step / len(tokens.train),
        "bits_per_byte": min(*losses, *averaged[PLANNED_AVERAGE]) / nats,
        "losses": losses,
        "averaged": averaged,
        "seconds": time.perf_counter() - began,
    }


def update(
    parts: TrainingParts,
    runtime: Runtime,
    settings: Settings,
    levers: Levers,
    step: int,
    batches: range,
    progress: float,
) -> None:
    """One update, as the trainer makes it."""
    train = settings.train
    scale = lr_scale(
        train.schedule, step, progress, train.warmup_steps, train.decay_fraction, train.min_lr_ratio
    )
    set_lr_scale(parts.optimizers, scale)
    levers.before(scale, progress)
    result = training_update(parts, batches, runtime, train.grad_clip, StepTimer())
    assert result is not None
    assert result.problem is None
    levers.after()


def cut(source: str, folder: Path, size: int) -> Path:
    """Write the first part of a text to train on and its last part to validate on."""
    if source == "builtin:python":
        files = builtin_python()
        order = np.random.default_rng(0).permutation(len(files))
        data = b"".join(Path(files[i].at).read_bytes() for i in order[:200])
        name = "python"
    else:
        data, name = Path(source).read_bytes(), Path(source).stem
    train = folder / f"{name}.txt"
    held_out = data[-VAL_BYTES:]
    for path, part in ((train, data[:-VAL_BYTES][:size]), (train.with_suffix(".val"), held_out)):
        path.write_text(part.decode("utf-8", "ignore"), encoding="utf-8", newline="")
    return train


def table(path: Path, against: str) -> None:
    """Print the differences of the best losses from those of the basis with the same seed."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    best: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for one in runs:
        key = one["text"], one["seed"]
        planned = one["averaged"][str(PLANNED_AVERAGE)]
        best[one["candidate"]][key] = min(*one["losses"], *planned)
        best[f"{one['candidate']}, not averaged"][key] = min(one["losses"])
        for part, losses in one["averaged"].items():
            if one["candidate"].startswith("decay"):
                best[f"{one['candidate']}, averaged over {part}"][key] = min(*losses, min(one["losses"]))
    texts = sorted({one["text"] for one in runs})
    print("| candidate |", " | ".join(texts), "|")
    for name, by_run in best.items():
        cells = []
        for text in texts:
            pairs = [(loss, best[against].get(key)) for key, loss in by_run.items() if key[0] == text]
            differences = [loss - base for loss, base in pairs if base is not None]
            error = (
                statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else math.nan
            )
            mean = statistics.mean(differences) if differences else math.nan
            value = statistics.mean(loss for loss, _ in pairs) if pairs else math.nan
            cells.append(f"{value:.4f} ({mean:+.4f} ± {error:.4f}, {len(differences)})")
        print(f"| {name} |", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", action="append", default=[], help="a file, or builtin:python; repeatable")
    parser.add_argument("--try", dest="tries", action="append", metavar="NAME=VALUE", default=[])
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--decay", default="0.5", help="weight decay of the candidates that are none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kilobytes", type=int, default=100, help="of training text")
    parser.add_argument("--set", dest="assignments", action="append", metavar="KEY=VALUE", default=[])
    parser.add_argument("--table", type=Path, help="print the table of these results; train nothing")
    parser.add_argument("--against", default="decay=0.5", help="the candidate that is the table's basis")
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.table, arguments.against)
        return
    with tempfile.TemporaryDirectory() as folder:
        texts = [cut(text, Path(folder), 1000 * arguments.kilobytes) for text in arguments.text]
        more = [f"runtime.threads={arguments.threads}", *arguments.assignments]
        for seed in arguments.seeds.split(","):
            for text in texts:
                for tried in arguments.tries:
                    candidate = Candidate.parsed(tried)
                    result = run(candidate, text, int(seed), arguments.steps, arguments.decay, more)
                    print(json.dumps(result), flush=True)
                    print(candidate, text.stem, seed, f"{min(result['losses']):.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
