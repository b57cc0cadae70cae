"""Tokens per second of generation, compared with nanoGPT's, in turns in one process.

Both write one text after a line end with fresh weights, at temperature 0.8 among the 40 likeliest
tokens, in the shape of nanoGPT's "baby GPT": 6 layers, 6 heads, 384 wide, 256 tokens of context, a
vocabulary of 65. nanoGPT runs the ``generate`` of its own model.py, as its sample.py does in fp32.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/generate.py nanoGPT --threads 2

With ``--llama`` it is llama.cpp instead: see generate_llama.py. With ``--rules`` it is what grammars cost:
see generate_rules.py.

Every token reads every weight but the embeddings of other tokens, so a token cannot take less time than that
reading. The last lines say how far from it we are: bytes of weights over the bandwidth at which this machine
reads as many bytes again and again (from its caches, where they fit), and reads a GiB (from its memory).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import generate_llama, generate_rules
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.generation.generate import Generation
from cpulm.generation.sampling import Sampling
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine

VOCAB_SIZE = 65
TEMPERATURE, TOP_K = 0.8, 40
SHAPES = {
    "cpulm, Qwen3 block": ModelSettings(),
    "cpulm, GPT-2 block": ModelSettings(
        norm="layernorm", position="learned", mlp="gelu", qk_norm=False, bias=False
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nanogpt", type=Path, nargs="?", help="a clone of nanoGPT")
    parser.add_argument("--llama", action="store_true", help="compare with llama.cpp")
    parser.add_argument("--rules", action="store_true", help="compare with what grammars allow")
    parser.add_argument("--tokens", type=int, default=500, help="tokens of one text")
    parser.add_argument("--rounds", type=int, default=3, help="texts of each")
    parser.add_argument("--threads", default="2")
    generate_llama.add_options(parser)
    arguments = parser.parse_args()
    if arguments.llama:
        generate_llama.compare(arguments)
        return
    if arguments.rules:
        generate_rules.compare(arguments)
        return
    if arguments.nanogpt is None:
        parser.error("give a clone of nanoGPT, --llama or --rules")
    runtime_settings = resolve(
        assignments=["runtime.precision=fp32", f"runtime.threads={arguments.threads}"]
    ).runtime
    runtime = choose_runtime(runtime_settings, read_machine())  # sets the threads, and flushes denormals
    writers = {"nanoGPT": nanogpt_writer(arguments.nanogpt)}
    writers |= {name: cpulm_writer(settings, runtime) for name, settings in SHAPES.items()}
    for write in writers.values():
        write(20)
    rates: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(arguments.rounds):
        for name, write in writers.items():
            began = time.perf_counter()
            write(arguments.tokens)
            rates[name].append(arguments.tokens / (time.perf_counter() - began))

    print(f"{arguments.tokens} tokens, {arguments.rounds} rounds in turns, {arguments.threads} threads")
    for name, values in rates.items():
        ratio = statistics.median(own / theirs for own, theirs in zip(values, rates["nanoGPT"], strict=True))
        print(
            f"{name:20} {statistics.median(values):7.1f} tok/s "
            f"({min(values):.1f} to {max(values):.1f}), {ratio:.2f} x nanoGPT"
        )
    for name, settings in SHAPES.items():
        show_limit(name, weight_bytes(settings), statistics.median(rates[name]))


def show_limit(name: str, read_bytes: int, rate: float) -> None:
    """Print ``rate``, in tokens per second, as a share of the bandwidth's limit."""
    for what, size in (("weights read again and again", read_bytes), ("a GiB", 1 << 30)):
        bandwidth = read_bandwidth(size)
        limit = bandwidth / read_bytes
        print(
            f"{name:20} reads {read_bytes / 1e6:.1f} MB a token, at {bandwidth / 1e9:.1f} GB/s ({what}) "
            f"{limit:.0f} tok/s: 1/{limit / rate:.2f} of the limit"
        )


def weight_bytes(settings: ModelSettings) -> int:
    """Bytes of the weights that one token's forward pass reads: of the embeddings a row, unless they are the
    head's as well."""
    model = Transformer(settings, VOCAB_SIZE)
    rows = [table for table in (model.wte, model.wpe) if table is not None]
    tables = [table.weight for table in rows if table.weight is not model.head_weight]
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return 4 * (numbers - sum(table.numel() - settings.n_embd for table in tables))


def read_bandwidth(size: int) -> float:
    """Bytes a second at which all threads together read ``size`` bytes of fp32, the fastest of ten passes."""
    matrix = torch.ones(size // 4 // 1024, 1024)
    vector, best = torch.ones(1024), math.inf

    def product() -> torch.Tensor:
        return matrix @ vector

    for read in (product, matrix.sum):
        for _ in range(10):
            began = time.perf_counter()
            read()
            best = min(best, time.perf_counter() - began)
    return matrix.nbytes / best


def nanogpt_writer(folder: Path) -> Callable[[int], None]:
    """nanoGPT's model with fresh weights, writing the requested number of tokens."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "model.py").is_file():
        sys.exit(f"{folder} holds no model.py of nanoGPT")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=256, vocab_size=VOCAB_SIZE, n_layer=6, n_head=6, n_embd=384, dropout=0.0, bias=False
    )
    model = module.GPT(config).eval()

    def write(tokens: int) -> None:
        model.generate(torch.zeros(1, 1, dtype=torch.long), tokens, temperature=TEMPERATURE, top_k=TOP_K)

    return write


def cpulm_writer(settings: ModelSettings, runtime: Runtime) -> Callable[[int], None]:
    """Our model with fresh weights, writing the requested number of tokens."""
    model = Transformer(settings, VOCAB_SIZE)
    model.init_weights(0)
    runtime.equip(model)
    model.eval().requires_grad_(False)
    sampling = Sampling(temperature=TEMPERATURE, top_k=TOP_K)

    def write(tokens: int) -> None:
        for _ in Generation(model, [0], max_new_tokens=tokens, sampling=sampling):
            pass

    return write


if __name__ == "__main__":
    main()
