"""Bits per byte on WikiText-2's test text after some minutes of training on its validation text.

    python benchmarks/wikitext.py --data-train wikitext2-valid.txt --data-test wikitext2-test.txt --minutes 10
        [--nanogpt ../nanoGPT] [--nanochat ../nanochat] [--peer-minutes 30] [--json] [OPTIONS of cpulm train]

Ours: ``cpulm train`` with ``--max-time`` and the settings below, its tokenizer and all else from that text,
a twentieth of it held out; then ``cpulm evaluate`` on the test text.

nanoGPT: its data preparation for characters on the same text, a tenth held out, and its README's recipe for
CPUs, trained by its train.py for so many updates as its measured time per update lets into its minutes; its
learning rate decays to their end, and the checkpoint is the best on its held-out part.

nanochat: see peer_text.py; on tokens of the vocabulary that ours is trained on, a twentieth of the text held
out. Its rule for learning rates, for batches 256 times as large, and that rule's rates eight times over are
each tried for a twentieth of the minutes, which do not count; the better one is trained.

All are scored in windows of the context, side by side: nats over ln 2 and the bytes of the whole test text.
A character of the test text that the training text does not have cannot be told to nanoGPT: it is left out,
and costs nothing while its bytes count.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from cpulm.events import StepDone, Validated
from cpulm.runlog.tail import Tail

ROOT = Path(__file__).resolve().parents[1]
PRESET = "shakespeare-20min"
SETTINGS = (
    "data.tokenizer=bpe",
    "data.vocab_size=2048",
    "data.val_fraction=0.05",
    "model.dropout=0.35",
    "train.weight_decay=0.5",
    "eval.every=100",
)
"""The differences from the preset."""

RECIPE = (
    "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64",
    "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0", "--dataset=wikitext2",
)  # fmt: skip
BLOCK_SIZE, EVAL_EVERY, PROBED = 64, 250, 500
"""The recipe's context, its evaluation interval, and the updates used for timing."""

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]

_ITERATION = re.compile(r"^iter \d+: .* time ([\d.]+)ms", re.MULTILINE)


@dataclass(frozen=True)
class Text:
    """A text as the numbers of a vocabulary's characters, uint16, and its size in UTF-8."""

    ids: npt.NDArray[np.uint16]
    bytes: int
    characters_left_out: int


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> tuple[float, str]:
    """Seconds that the process took, and what it wrote on stdout.

    Raises:
        SystemExit: where it fails.
    """
    began = time.perf_counter()
    merged = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=folder, env=merged, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - began, done.stdout


def ours(train: Path, test: Path, minutes: float, options: list[str], folder: Path) -> dict[str, Any]:
    """Train and evaluate as a user would."""
    out = folder / "run"
    environment = {"CPULM_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cpulm", "train", "--preset", PRESET, "--data", str(train), "--headless"]
    command += ["--max-time", f"{60 * minutes:.0f}s", "--out", str(out)]
    for setting in SETTINGS:
        command += ["--set", setting]
    seconds, _ = run([*command, *options], folder, environment)
    judge = [sys.executable, "-m", "cpulm", "evaluate", "--checkpoint", str(out), str(test), "--json"]
    judging, output = run(judge, folder, environment)
    judged = json.loads(output)["checkpoints"][0]
    events = list(Tail(out / "metrics.jsonl").new_events())
    steps = [event for event in events if isinstance(event, StepDone)]
    return {
        "program": "cpulm",
        "bits_per_byte": judged["text"]["bits_per_byte"]["value"],
        "text_bytes": judged["text"]["text_bytes"],
        "seconds": seconds,
        "evaluate_seconds": judging,
        "params": judged["params_total"],
        "steps": steps[-1].step,
        "epochs": steps[-1].epoch,
        "best_step": judged["step"],
        "validations": [event.bits_per_byte for event in events if isinstance(event, Validated)],
    }


def vocabulary_of(text: str) -> dict[str, int]:
    """Number the text's characters in order, as nanoGPT's prepare.py does."""
    return {character: number for number, character in enumerate(sorted(set(text)))}


def encoded(text: str, numbers: dict[str, int]) -> Text:
    """The text without the characters that have no number."""
    ids = [numbers[character] for character in text if character in numbers]
    return Text(np.array(ids, dtype=np.uint16), len(text.encode()), len(text) - len(ids))


def prepare(text: str, clone: Path, folder: Path) -> dict[str, int]:
    """The folder in which train.py runs: with its configuration, and the text in ``data/wikitext2``."""
    data = folder / "data" / "wikitext2"
    data.mkdir(parents=True)
    for name in ("configurator.py", "config"):
        (folder / name).symlink_to(clone / name)
    numbers = vocabulary_of(text)
    ids = encoded(text, numbers).ids
    held_out = int(len(text) * 0.9)
    ids[:held_out].tofile(data / "train.bin")
    ids[held_out:].tofile(data / "val.bin")
    meta = {"vocab_size": len(numbers), "stoi": numbers, "itos": {n: c for c, n in numbers.items()}}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    return numbers


def train_nanogpt(clone: Path, folder: Path, updates: int) -> tuple[float, str]:
    """Seconds of a whole process of some updates, and its log; the checkpoint is ``out/ckpt.pt``."""
    command = [sys.executable, str(clone / "train.py"), "config/train_shakespeare_char.py", *RECIPE]
    command += [f"--max_iters={updates}", f"--lr_decay_iters={updates}", "--out_dir=out"]
    return run(command, folder)


def updates_in(seconds: float, probe_seconds: float, probe_log: str) -> int:
    """Updates that fit into ``seconds``, in whole evaluation intervals.

    The probe's updates are free of evaluations by their median; what its whole process took beyond them is
    the start, and its evaluations, of which it had one more than turns.
    """
    update = statistics.median(float(found) for found in _ITERATION.findall(probe_log)) / 1e3
    turns = PROBED // EVAL_EVERY
    beyond = max(0.0, probe_seconds - PROBED * update)
    turn = EVAL_EVERY * update + beyond / (turns + 2)  # the start takes about as long as an evaluation
    return EVAL_EVERY * max(1, round((seconds - 2 * beyond / (turns + 2)) / turn))


def load_nanogpt(clone: Path, checkpoint: Path) -> tuple[torch.nn.Module, int]:
    """Load its model of a checkpoint, and the update of the checkpoint."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", clone / "model.py")
    assert spec is not None
    assert spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    saved = torch.load(checkpoint, map_location="cpu")
    with contextlib.redirect_stdout(sys.stderr):
        model: torch.nn.Module = peer.GPT(peer.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    return model.eval(), int(saved["iter_num"])


def windows(tokens: npt.NDArray[np.uint16], block_size: int, rows: int) -> Batches:
    """Inputs and targets of all tokens but the first, ``rows`` adjacent windows at a time."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    inputs, targets = ids[:-1], ids[1:]
    whole = len(targets) // block_size * block_size
    yield from zip(
        inputs[:whole].view(-1, block_size).split(rows),
        targets[:whole].view(-1, block_size).split(rows),
        strict=True,
    )
    if whole < len(targets):
        yield inputs[None, whole:], targets[None, whole:]


@torch.no_grad()
def bits_per_byte(model: torch.nn.Module, text: Text, block_size: int, rows: int = 64) -> float:
    """The loss of the text but its first character; ``model(idx, targets)`` gives logits and mean loss."""
    nats = math.fsum(float(model(x, y)[1]) * y.numel() for x, y in windows(text.ids, block_size, rows))
    return nats / math.log(2) / text.bytes


def nanogpt(clone: Path, train: Path, test: Path, minutes: float, folder: Path) -> dict[str, Any]:
    """Prepare, measure, train and score."""
    numbers = prepare(train.read_text(encoding="utf-8"), clone, folder)
    updates = updates_in(60 * minutes, *train_nanogpt(clone, folder, PROBED))
    seconds, log = train_nanogpt(clone, folder, updates)
    model, best = load_nanogpt(clone, folder / "out" / "ckpt.pt")
    text = encoded(test.read_text(encoding="utf-8"), numbers)
    return {
        "program": "nanoGPT",
        "bits_per_byte": bits_per_byte(model, text, BLOCK_SIZE),
        "text_bytes": text.bytes,
        "characters_left_out": text.characters_left_out,
        "seconds": seconds,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "steps": updates,
        "best_step": best,
        "validations": [line.rpartition("val loss ")[2] for line in log.splitlines() if "val loss" in line],
    }


def tokenize(train: Path, test: Path, folder: Path) -> int:
    """Write train.bin, val.bin and test.bin with the vocabulary of SETTINGS; return its size."""
    kind, size, held_out = (setting.partition("=")[2] for setting in SETTINGS[:3])
    command = [sys.executable, "-m", "cpulm", "tokenize", str(train), "--out", str(folder)]
    command += ["--tokenizer", kind, "--vocab-size", size, "--val-fraction", held_out]
    run(command, folder.parent, {"CPULM_CACHE": str(folder.parent / "cache"), "PYTHONPATH": str(ROOT)})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(test.read_text(encoding="utf-8"), add_special_tokens=False).ids
    np.array(ids, dtype=np.uint16).tofile(folder / "test.bin")
    return int(tokenizer.get_vocab_size())


def nanochat(clone: Path, train: Path, test: Path, minutes: float, folder: Path) -> dict[str, Any]:
    """Tokenize, try two rates, train and score."""
    folder.mkdir()
    vocab_size = tokenize(train, test, folder / "tokens")

    def trained(minutes: float, lr_scale: float) -> tuple[float, dict[str, Any]]:
        command = [sys.executable, str(ROOT / "benchmarks" / "peer_text.py"), str(clone)]
        command += [str(folder / "tokens"), str(vocab_size), str(minutes), str(lr_scale)]
        seconds, output = run(command, folder, {"PYTHONPATH": str(ROOT)})
        return seconds, json.loads(output.splitlines()[-1])

    rule = math.sqrt(2048 / 2**19)  # tokens in an update over those that its rates are given for
    tried = {scale: trained(minutes / 20, scale)[1] for scale in (rule, 8 * rule)}
    chosen = min(tried, key=lambda scale: min(tried[scale]["validations"]))
    seconds, result = trained(minutes, chosen)
    size = test.stat().st_size
    return {
        "program": "nanochat",
        "bits_per_byte": result["nats"] / math.log(2) / size,
        "text_bytes": size,
        "process_seconds": seconds,
        "lr_scale": chosen,
        "tried": {scale: min(one["validations"]) for scale, one in tried.items()},
        **result,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data-train", type=Path, required=True, help="the text to learn from")
    parser.add_argument("--data-test", type=Path, required=True, help="the text to be scored")
    parser.add_argument("--minutes", type=float, default=10, help="minutes of cpulm; 0 skips it")
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--nanochat", type=Path, help="a clone of nanochat")
    parser.add_argument("--peer-minutes", type=float, default=30)
    parser.add_argument("--json", action="store_true")
    arguments, options = parser.parse_known_args()
    train, test = arguments.data_train.resolve(), arguments.data_test.resolve()
    with tempfile.TemporaryDirectory() as name:
        runs: list[Callable[[], dict[str, Any]]] = []
        if arguments.minutes:
            runs.append(lambda: ours(train, test, arguments.minutes, options, Path(name)))
        if arguments.nanogpt:
            clone, folder = arguments.nanogpt.resolve(), Path(name) / "nanogpt"
            runs.append(lambda: nanogpt(clone, train, test, arguments.peer_minutes, folder))
        if arguments.nanochat:
            other = arguments.nanochat.resolve()
            runs.append(lambda: nanochat(other, train, test, arguments.peer_minutes, Path(name) / "nanochat"))
        for one in runs:
            result = one()
            if arguments.json:
                print(json.dumps(result), flush=True)
                continue
            print(
                f"{result['program']:8} {result['bits_per_byte']:.4f} bits per byte after "
                f"{result['seconds'] / 60:.1f} minutes, {result['steps']} updates of "
                f"{result['params'] / 1e6:.2f} M parameters (best at {result['best_step']})",
                flush=True,
            )


if __name__ == "__main__":
    main()
