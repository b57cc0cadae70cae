"""Tokens per second beside llama.cpp's (package xllamacpp), on the same weights and threads, in turns.

    python benchmarks/generate.py --llama [--presets small,medium,135M] [--threads 1,2] [--rows 1,8]

Models in the shape of presets, and one in that of SmolLM2-135M (30 layers, 576 wide, a vocabulary of
49,152), all with fresh weights. Ours computes in fp32 beside llama.cpp's f32, and in int8 beside its q8_0.
Both read a prompt and write on greedily, in one text or in several at once. llama.cpp runs in a process of
its own, by its own clock, with its own choice of everything else (keys and values in f16).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.llama_server import LlamaServer
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.data.tokenizer import char_tokenizer
from cpulm.execution.adaptive_threads import threads_for_model
from cpulm.execution.runtime import choose_runtime
from cpulm.execution.writing import prepare_to_write
from cpulm.export.formats import Quantization
from cpulm.export.gguf import write_gguf
from cpulm.export.trained_model import TrainedModel
from cpulm.generation.generate import Generation
from cpulm.generation.sampling import Sampling
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings, Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine

CONTEXT = 1024
SMOLLM2 = {
    "n_layer": 30,
    "n_head": 9,
    "n_kv_head": 3,
    "n_embd": 576,
    "n_inner": 1536,
    "qk_norm": False,
    "norm_eps": 1e-5,
}
PRECISIONS: dict[str, Quantization] = {"fp32": "f32", "int8": "q8_0"}


@dataclass(frozen=True)
class Case:
    """What is measured in one turn; ``tokens`` of the prompt, then ``count`` written in each of ``rows``."""

    precision: str
    threads: int
    rows: int
    tokens: int
    count: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``--llama``, and of ``--rules``."""
    parser.add_argument("--presets", default="small,medium,135M")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--rows", default="1,8", help="texts at once")
    parser.add_argument("--prompt-tokens", type=int, default=512)


def compare(arguments: argparse.Namespace) -> None:
    """Print a line for each preset, precision, number of threads and of texts."""
    print(f"{'':8}{'':6}{'threads':>8}{'texts':>6}{'prompt, tok/s':>26}{'writing, tok/s':>26}")
    threads = [int(number) for number in str(arguments.threads).split(",")]
    rows = [int(number) for number in arguments.rows.split(",")]
    for name in arguments.presets.split(","):
        model = fresh_model(name)
        with tempfile.TemporaryDirectory() as folder:
            for precision in arguments.precisions.split(","):
                gguf = Path(folder) / f"{precision}.gguf"
                write_gguf(exported(name, model), gguf, PRECISIONS[precision])
                for number in threads:
                    for each in rows:
                        case = Case(precision, number, each, arguments.prompt_tokens, arguments.tokens)
                        show(name, case, turns(model, gguf, case, arguments.rounds))


def show(name: str, case: Case, rates: list[list[tuple[float, float]]]) -> None:
    """One line: medians of both programs and their ratio, for reading and for writing."""
    cells = []
    for what in (0, 1):
        ours, theirs = (statistics.median(rate[what] for rate in each) for each in rates)
        cells.append(f"{ours:9,.0f} {theirs:9,.0f} {ours / theirs:6.2f}")
    print(f"{name:8}{case.precision:6}{case.threads:8}{case.rows:6}{cells[0]}{cells[1]}", flush=True)


def turns(model: Transformer, gguf: Path, case: Case, rounds: int) -> list[list[tuple[float, float]]]:
    """The tokens per second of reading and of writing: a list of rounds for us, and one for llama.cpp."""
    theirs = LlamaServer(gguf, case.threads, case.rows, CONTEXT)
    writers: list[Callable[[int, int], tuple[float, float]]] = [our_writer(model, case), theirs.seconds]
    rates: list[list[tuple[float, float]]] = [[], []]
    for write in writers:
        write(case.tokens, 4)
    for _ in range(rounds):
        for write, its_rates in zip(writers, rates, strict=True):
            read = write(case.tokens, 1)[0] if case.rows == 1 else float("nan")
            wrote = write(1, case.count)[1]
            its_rates.append((case.tokens / read, case.rows * (case.count - 1) / wrote))
    theirs.close()
    return rates


def our_writer(model: Transformer, case: Case) -> Callable[[int, int], tuple[float, float]]:
    """Reads a prompt and writes; gives the seconds of both, the first token with the prompt."""
    assigned = ["runtime.precision=fp32", f"runtime.threads={case.threads}"]
    runtime = choose_runtime(resolve(assignments=assigned).runtime, read_machine())
    prepare_to_write(model, runtime, case.precision)

    def write(tokens: int, count: int) -> tuple[float, float]:
        prompt = [number % 60 for number in range(tokens)]
        with threads_for_model(model, case.rows) as threads:
            generation = Generation(
                model, prompt, max_new_tokens=count, num_samples=case.rows, sampling=Sampling(temperature=0.0)
            )
            began = time.perf_counter()
            texts: Iterator[object] = threads.each(generation)
            next(texts)
            read = time.perf_counter()
            for _ in texts:
                pass
        return read - began, time.perf_counter() - read

    return write


def fresh_model(name: str, vocab_size: int | None = None) -> Transformer:
    """With fresh weights, ready to write; the preset's own vocabulary size unless one is given."""
    if name == "135M":
        settings, own_size = ModelSettings.model_validate({**SMOLLM2, "block_size": CONTEXT}), 49_152
    else:
        preset = resolve(preset=name)
        settings = preset.model.model_copy(update={"block_size": CONTEXT})
        own_size = preset.data.vocab_size or 256
    model = Transformer(settings, vocab_size or own_size)
    model.init_weights(0)
    return model.eval().requires_grad_(False)


def exported(name: str, model: Transformer) -> TrainedModel:
    """The model with a vocabulary of rare characters, as the exporters take it."""
    tokenizer = char_tokenizer(chr(0x20000 + number) for number in range(model.vocab_size - 1))
    settings = Settings(model=model.settings)
    checkpoint = Checkpoint(settings, tokenizer.to_json(), model.vocab_size, True, {})
    return TrainedModel(name, model, tokenizer, checkpoint)
