"""Wall-clock time of whole ``cpulm train`` processes, from start to exit, and the validation loss they reach.

    python benchmarks/time_to_loss.py --preset shakespeare-char --data tinyshakespeare.txt [--runs 3] [--json]
        [--nanogpt ../nanoGPT] [OPTIONS of cpulm train]

Each run begins with an empty cache: compiling the kernels, reading and encoding the text, evaluating and
writing the checkpoint all count. The loss is that of the whole validation split in non-overlapping windows.
With a clone of nanoGPT given, its README's recipe for CPUs runs in turns with ours on the same text.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cpulm.events import Validated
from cpulm.runlog.find_event import last_event

RECIPE = (
    "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=100", "--block_size=64",
    "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
    "--lr_decay_iters=2000", "--dropout=0.0",
)  # fmt: skip


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, str]:
    """Seconds that the process took, and what it wrote."""
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return seconds, done.stdout + done.stderr


def ours(preset: str, data: Path, options: list[str], folder: Path) -> dict[str, Any]:
    """One run of cpulm: seconds, loss, scored tokens, steps."""
    out = folder / "run"
    command = [sys.executable, "-m", "cpulm", "train", "--preset", preset, "--data", str(data), "--headless"]
    seconds, _ = timed(
        [*command, "--out", str(out), *options], folder, {"CPULM_CACHE": str(folder / "cache")}
    )
    last = last_event(out / "metrics.jsonl", Validated)
    assert last is not None, "no validation"
    return {
        "program": "cpulm",
        "seconds": seconds,
        "loss": last.loss,
        "bits_per_byte": last.bits_per_byte,
        "judged_tokens": last.tokens,
        "steps": last.step,
    }


def nanogpt(clone: Path, folder: Path) -> dict[str, Any]:
    """One run of nanoGPT's recipe, its data prepared beforehand; the loss is its own estimate."""
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *RECIPE]
    seconds, text = timed([*command, f"--out_dir={folder / 'nanogpt'}"], clone, {})
    losses = [line.rpartition("val loss ")[2] for line in text.splitlines() if "val loss" in line]
    return {"program": "nanoGPT", "seconds": seconds, "loss": float(losses[-1]), "steps": 2000}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--preset", default="shakespeare-char")
    parser.add_argument("--data", type=Path, required=True, help="the text")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT with its shakespeare_char prepared")
    parser.add_argument("--json", action="store_true")
    arguments, options = parser.parse_known_args()
    data = arguments.data.resolve()
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            results = [ours(arguments.preset, data, options, folder)]
            if arguments.nanogpt:
                results.append(nanogpt(arguments.nanogpt.resolve(), folder))
        for result in results:
            if arguments.json:
                print(json.dumps(result), flush=True)
            else:
                steps = f"{result['steps']} steps"
                print(
                    f"{result['program']:8} {result['seconds']:8.1f} s   loss {result['loss']:.4f}   {steps}"
                )


if __name__ == "__main__":
    main()
