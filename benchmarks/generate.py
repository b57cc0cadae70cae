"""Tokens per second of generation, beside nanoGPT's, in one process and in turns.

Both write one text after a line end with fresh weights, at temperature 0.8 among the 40 likeliest
tokens, in the shape of nanoGPT's "baby GPT": 6 layers, 6 heads, 384 wide, 256 tokens of context, a
vocabulary of 65. nanoGPT runs the ``generate`` of its own model.py, as its sample.py does in fp32.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/generate.py nanoGPT --threads 2
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpulm.engine.generate import Generation
from cpulm.engine.sampling import Sampling
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings

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
    parser.add_argument("nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--tokens", type=int, default=500, help="tokens of one text")
    parser.add_argument("--rounds", type=int, default=3, help="texts of each")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # As cpulm and nanoGPT's users run it
    torch.set_flush_denormal(True)

    writers = {"nanoGPT": nanogpt_writer(arguments.nanogpt)}
    writers |= {name: cpulm_writer(settings) for name, settings in SHAPES.items()}
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


def nanogpt_writer(folder: Path) -> Callable[[int], None]:
    """nanoGPT's model with fresh weights, writing as many tokens as asked for."""
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


def cpulm_writer(settings: ModelSettings) -> Callable[[int], None]:
    """Our model with fresh weights, writing as many tokens as asked for."""
    model = Transformer(settings, VOCAB_SIZE)
    model.init_weights(0)
    model.eval().requires_grad_(False)
    sampling = Sampling(temperature=TEMPERATURE, top_k=TOP_K)

    def write(tokens: int) -> None:
        for _ in Generation(model, [0], max_new_tokens=tokens, sampling=sampling):
            pass

    return write


if __name__ == "__main__":
    main()
