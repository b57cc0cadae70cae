"""Measures how the loss of small models falls with size, text and passes, for the law that plans runs.

    python benchmarks/laws.py --data ../shared/data [--cells GROUP ...] [--jobs 2] --results laws
    python benchmarks/laws.py --text notes/ --text novel.txt [--often] [--jobs 2] --results laws

Each cell is one training at a constant learning rate with an average of the weights (``average_fraction``
0.2), validated at moments that grow by the square root of two. The averaged weights at a moment are about
as good as those of a run whose learning rate has decayed by then, so one training gives the loss for all
horizons up to its own; the cells of the group ``decayed`` check that. Cells whose result is in the file are
not trained again. The losses depend on the updates alone, not on the machine's load.

``--text`` trains two sizes on another text, a file or a folder of about a MB, and validates them on the split
that cpulm makes; with ``--often`` one size in many passes, with and without
``train.bpe_dropout``. ``benchmarks/fit_laws.py --add laws`` adds the results to its table.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cpulm.atomic import write_text
from cpulm.data.byte_ngrams import text_curve
from cpulm.data.loader import val_batch_count, val_batches
from cpulm.data.prepare import prepare
from cpulm.data.sources import builtin_python
from cpulm.evaluation.validation_loss import evaluate
from cpulm.execution.runtime import choose_runtime
from cpulm.execution.update import StepTimer, training_update
from cpulm.model.counts import count
from cpulm.optim.build_optimizers import set_lr_scale
from cpulm.optim.schedule import lr_scale
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.training.build import build_parts

VAL_BYTES = 40_000
BLOCK, HEAD_WIDTH = 128, 64
FIRST_TOKENS = 50_000
"""The first moment of a validation."""


@dataclass(frozen=True)
class Cell:
    """One training: of ``n_layer`` x ``n_embd`` on the first ``kilobytes`` of a text, for ``tokens``.

    Of a text that is a path all is used.
    """

    text: str
    kilobytes: int
    n_layer: int
    n_embd: int
    vocab_size: int
    rows: int
    tokens: float
    dropout: float = 0.0
    weight_decay: float = 0.1
    bpe_dropout: float = 0.0
    schedule: str = "constant"
    seed: int = 1

    @property
    def name(self) -> str:
        return " ".join(str(value) for value in (asdict(self) | {"text": self.short_text}).values())

    @property
    def short_text(self) -> str:
        return Path(self.text).stem


def _cells() -> dict[str, list[Cell]]:
    wikitext, python, shakespeare = (
        Cell(text, 100, 2, 128, 1024, 8, 0.3e6, 0.2, 0.5) for text in ("wikitext", "python", "shakespeare")
    )
    large = [Cell(text, 1000, 2, 128, 2048, 16, 0.3e6) for text in ("wikitext", "python", "shakespeare")]
    return {
        "first": [
            wikitext,
            large[0],
            replace(large[0], n_embd=64, tokens=0.4e6),
            replace(large[0], n_layer=4, n_embd=192),
            large[1],
            replace(wikitext, n_layer=4, n_embd=192, tokens=0.2e6),
        ],
        "second": [
            replace(wikitext, dropout=0.4),
            replace(wikitext, dropout=0.0, tokens=0.2e6),
            replace(large[0], schedule="wsd"),
            replace(wikitext, tokens=0.2e6, schedule="wsd"),
            python,
            replace(wikitext, n_embd=64),
            replace(wikitext, weight_decay=1.5),
            replace(wikitext, weight_decay=0.1, tokens=0.2e6),
        ],
        "third": [
            replace(large[1], n_embd=64),
            shakespeare,
            Cell("wikitext", 20, 2, 64, 512, 8, 0.15e6, 0.2, 0.5),
            replace(large[1], n_layer=4, n_embd=192),
            replace(python, dropout=0.4),
            large[2],
            replace(large[0], vocab_size=1024),
            replace(large[0], tokens=2.4e6, dropout=0.2),
        ],
        "split": [
            replace(one, n_layer=layers, n_embd=width, tokens=5e6, weight_decay=0.5, bpe_dropout=0.1)
            for one, layers, width in (
                (large[0], 6, 256),
                (large[0], 4, 192),
                (large[2], 4, 192),
                (large[0], 2, 128),
            )
        ],
    }


CELLS = _cells()
OF_OTHER_TEXTS = (Cell("", 0, 2, 128, 2048, 16, 0.6e6), Cell("", 0, 4, 192, 2048, 16, 0.8e6))
SEEN_OFTEN = tuple(
    Cell("", 0, 4, 192, 2048, 16, 5e6, weight_decay=0.5, bpe_dropout=probability)
    for probability in (0.0, 0.1)
)


def train(cell: Cell, data: Path, result: Path) -> None:
    """Train one cell; write the losses of its weights and of their average after each moment."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        source, val = _cut(cell, data, Path(folder))
        settings = _settings(cell, source, val)
        steps = settings.train.steps or 1
        tokens = prepare(settings.data, emit=lambda _: None, should_stop=lambda: False)
        runtime = choose_runtime(settings.runtime, read_machine(), settings.model)
        parts = build_parts(settings, tokens, runtime)
        counts = count(settings.model, tokens.vocab_size)
        average, moments = parts.average, _moments(steps, cell.rows * BLOCK)
        curve = text_curve(tokens)
        assert average is not None
        assert curve is not None

        def loss() -> float:
            n = val_batch_count(tokens.val, BLOCK, cell.rows)
            batches = val_batches(tokens.val, BLOCK, cell.rows)
            found = evaluate(parts.model, batches, n, emit=lambda _: None, should_stop=lambda: False)
            assert found is not None
            return found.loss

        validations = []
        for step in range(steps):
            scale = lr_scale(settings.train.schedule, step, step / steps, 20, 0.6, 0.0)
            set_lr_scale(parts.optimizers, scale)
            update = training_update(parts, [step], runtime, settings.train.grad_clip, StepTimer())
            assert update is not None
            assert update.problem is None
            average.update(step + 1)
            if step + 1 in moments:
                raw = loss()
                with average.in_model():
                    validations.append(((step + 1) * cell.rows * BLOCK, raw, loss()))
                record = {
                    **asdict(cell),
                    "text": cell.short_text,
                    "complete": step + 1 == steps,
                    "params": counts.total,
                    "non_embedding": counts.non_embedding,
                    "train_tokens": len(tokens.train),
                    "train_bytes": int(tokens.meta["train"]["bytes"]),
                    "level": curve[0],
                    "slope": curve[1],
                    "bytes_per_token": tokens.bytes_per_token,
                    "validations": validations,
                    "seconds": time.process_time() - began,
                }
                write_text(result, json.dumps(record))


def _settings(cell: Cell, source: Path, val: Path | None) -> Settings:
    return resolve(
        assignments=[
            *([f"data.val_source={val}"] if val else []),
            f"model.n_layer={cell.n_layer}",
            f"model.n_embd={cell.n_embd}",
            f"model.n_head={cell.n_embd // HEAD_WIDTH}",
            f"model.block_size={BLOCK}",
            f"model.dropout={cell.dropout}",
            f"data.source={source}",
            f"data.vocab_size={cell.vocab_size}",
            f"train.micro_batch_size={cell.rows}",
            "train.lr=0.01",
            "train.muon_lr=0.01",
            "train.warmup_steps=20",
            "train.decay_fraction=0.6",
            "train.average_fraction=0.2",
            f"train.weight_decay={cell.weight_decay}",
            f"train.bpe_dropout={cell.bpe_dropout}",
            f"train.schedule={cell.schedule}",
            f"train.seed={cell.seed}",
            f"train.steps={round(cell.tokens / (cell.rows * BLOCK))}",
            "runtime.threads=1",
            "runtime.compile=off",
        ]
    )


def _moments(steps: int, tokens_per_step: int) -> set[int]:
    """The updates after which a run is validated, its last one included."""
    moments = {steps}
    at = float(steps)
    while at * tokens_per_step > FIRST_TOKENS * math.sqrt(2):
        at /= math.sqrt(2)
        moments.add(round(at))
    return moments


def _cut(cell: Cell, data: Path, folder: Path) -> tuple[Path, Path | None]:
    """Write the text to train on and the text to validate on, which is the same for every cell of a text."""
    if Path(cell.text).exists():
        return Path(cell.text), None
    size = cell.kilobytes * 1000
    if cell.text == "python":
        files = builtin_python()
        order = np.random.default_rng(0).permutation(len(files))
        whole = b"".join(Path(files[at].at).read_bytes() for at in order)
        train, val = whole[:size], whole[-VAL_BYTES:]
    elif cell.text == "wikitext":
        train = (data / "wikitext2-valid.txt").read_bytes()[:size]
        val = (data / "wikitext2-test.txt").read_bytes()[:VAL_BYTES]
    else:
        whole = (data / "tinyshakespeare.txt").read_bytes()
        train, val = whole[:size], whole[-VAL_BYTES:]
    for name, part in (("train.txt", train), ("val.txt", val)):
        (folder / name).write_text(part.decode("utf-8", "ignore"), encoding="utf-8", newline="")
    return folder / "train.txt", folder / "val.txt"


def _train_all(cells: list[Cell], arguments: argparse.Namespace) -> None:
    """Train the cells that have no complete result yet, one after the other."""
    for cell in cells:
        result = arguments.results / f"{cell.name.replace(' ', '-')}.json"
        if not result.exists() or not json.loads(result.read_text())["complete"]:
            train(cell, arguments.data, result)
            print(cell.name, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of the texts")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), metavar="GROUP")
    parser.add_argument("--text", action="append", default=[], metavar="PATH", help="another text")
    parser.add_argument("--often", action="store_true", help="train on --text in many passes")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, required=True, help="a folder, which is continued")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.job is not None:
        groups = arguments.cells or ([] if arguments.text else list(CELLS))
        cells = [cell for group in groups for cell in CELLS[group]]
        of_texts = SEEN_OFTEN if arguments.often else OF_OTHER_TEXTS
        cells += [replace(cell, text=text) for text in arguments.text for cell in of_texts]
        _train_all(cells[arguments.job :: arguments.jobs], arguments)
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--job"]
    for process in [subprocess.Popen([*command, str(job)]) for job in range(arguments.jobs)]:
        process.wait()


if __name__ == "__main__":
    main()
