"""The cost of `cpulm evaluate`: its throughput, that of a training forward pass, and the search for passages.

    python benchmarks/evaluate.py [--preset 4x192] [--rounds 5] [--search-tokens 100000000]

A preset's fresh weights score random tokens by the evaluation's own path (windows, batches, loss and hit of
every token), in turns with the forward pass of training on its micro-batches (in fp32, and in int8 where this
CPU has it) and with the validation pass of training, all of them equipped as training does, and once without
the compiled kernels; all count scored tokens. Then texts are looked for in a token file of many million
random tokens with the statistics of a text (a few tokens make up most of it), on disk and memory-mapped.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cpulm.data.loader import val_batches
from cpulm.data.tokenizer import byte_tokenizer
from cpulm.evaluation.memorization import find_memorized
from cpulm.evaluation.scoring import TOKENS_PER_BATCH, score
from cpulm.evaluation.text_windows import Protocol, batches, windows
from cpulm.evaluation.validation_loss import evaluate
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.system.precisions import has_fast_int8
from cpulm.training.build import build_random_parts

TOKENS = 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="4x192")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--search-tokens", type=int, default=100_000_000)
    arguments = parser.parse_args()
    settings = resolve(preset=arguments.preset, flags={"runtime.precision": "fp32"})
    runtime = choose_runtime(settings.runtime, read_machine())
    search(arguments.search_tokens)  # first: what comes later would hide its peak of memory
    compare(settings, runtime, arguments.rounds)


def compare(settings: Settings, runtime: Runtime, rounds: int) -> None:
    """Tokens per second of each variant, in turns."""
    vocab_size, block = settings.data.vocab_size or 256, settings.model.block_size
    parts = build_random_parts(settings, vocab_size, runtime)
    model, loader = parts.model, parts.loader
    tokens = np.random.default_rng(0).integers(0, vocab_size, TOKENS + 1).astype(np.uint16)
    per_batch = block * settings.train.micro_batch_size

    def training(how: Runtime) -> None:
        how.equip(model)
        model.train()
        for number in range(TOKENS // per_batch):
            x, y = loader.batch(number)
            with how.autocast():
                model(x, targets=y)

    def validation() -> None:
        runtime.equip(model)
        evaluate(
            model,
            val_batches(tokens, block, settings.train.micro_batch_size),
            TOKENS // per_batch,
            emit=lambda _: None,
            should_stop=lambda: False,
        )

    def evaluation(how: Runtime) -> None:
        how.equip(model)
        model.eval()
        found = windows([tokens], vocab_size, Protocol(block, block))
        for batch in batches(found, TOKENS_PER_BATCH):
            score(model, batch.inputs, batch.targets, how)

    ways = {
        "training, forward": lambda: training(runtime),
        "training, validation": validation,
        "evaluate": lambda: evaluation(runtime),
        "evaluate, plain torch": lambda: evaluation(replace(runtime, kernels=None)),
    }
    if has_fast_int8(read_machine().instruction_sets):
        ways["training, int8 forward"] = lambda: training(replace(runtime, precision="int8"))
    print(
        f"{settings.preset}, {runtime.threads} threads, {'; '.join(runtime.notes)}, {rounds} rounds in turns"
    )
    rates = in_turns(ways, rounds)
    for name, values in rates.items():
        ratios = [own / base for own, base in zip(values, rates["training, forward"], strict=True)]
        print(
            f"{name:23} {statistics.median(values):9,.0f} tok/s ({min(values):,.0f} to {max(values):,.0f}), "
            f"{statistics.median(ratios):.2f} x training's forward pass"
        )


def in_turns(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each variant in each round, after a warm-up round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number, (name, work) in itertools.product(range(rounds + 1), ways.items()):
        began = time.perf_counter()
        work()
        if number:
            rates[name].append(TOKENS / (time.perf_counter() - began))
    return rates


def search(total: int) -> None:
    """Seconds and memory to search for texts in ``total`` tokens of a byte vocabulary."""
    tokenizer = byte_tokenizer()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        with path.open("wb") as file:
            for begin in range(0, total, 1 << 22):
                size = min(1 << 22, total - begin)
                file.write((rng.zipf(1.3, size) % 256).astype("<u2").tobytes())
        train = np.memmap(path, dtype="<u2", mode="r")
        copied = train[total // 2 : total // 2 + 300].tolist()
        made = [(rng.zipf(1.3, 256) % 256).tolist() for _ in range(40)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        (found,) = find_memorized(
            [[*made, copied]], train, tokenizer, emit=lambda _: None, should_stop=lambda: False
        )
        seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert found.longest is not None
    shares = ", ".join(f"{n}: {share:.1%}" for n, share in found.shares.items())
    print(
        f"41 texts looked for in {total / 1e6:.0f} M tokens: {seconds:.1f} s, peak memory {grown:.0f} MiB "
        f"higher (the file's pages included); longest passage {found.longest.tokens} tokens; {shares}"
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
