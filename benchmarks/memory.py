"""Peak memory of real training steps beside the estimate of ``cpulm.model.counts.training_bytes``.

    python benchmarks/memory.py

Every shape runs in a process of its own: two steps of two micro-batches, peak resident size by getrusage
(Linux and macOS), less what the process held before the model was built.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch

from cpulm.model.counts import training_bytes
from cpulm.model.transformer import Transformer
from cpulm.optim.build import build_optimizers
from cpulm.settings import ModelSettings, TrainSettings, changed

QWEN3 = ModelSettings(n_layer=6, n_head=6, n_embd=384, block_size=256)
GPT2 = changed(QWEN3, norm="layernorm", position="learned", mlp="gelu", bias=True, qk_norm=False)

# name: (settings, vocab_size, micro_batch_size)
SHAPES = {
    "10.7M, 12 x 256": (QWEN3, 65, 12),
    "4 layers, 256 wide, 8 x 512, V 4096": (
        changed(QWEN3, n_layer=4, n_head=4, n_kv_head=2, n_embd=256, block_size=512),
        4096,
        8,
    ),
    "GPT-2 block, 4 layers, 256 wide, 2 x 512, V 32000": (
        changed(GPT2, n_layer=4, n_head=4, n_embd=256, block_size=512),
        32000,
        2,
    ),
    "8 layers, 512 wide, 4 x 512, V 16384": (
        changed(QWEN3, n_layer=8, n_head=8, n_kv_head=4, n_embd=512, block_size=512, n_inner=2048),
        16384,
        4,
    ),
    "the same, recomputing": (
        changed(
            QWEN3,
            n_layer=8,
            n_head=8,
            n_kv_head=4,
            n_embd=512,
            block_size=512,
            n_inner=2048,
            activation_checkpointing=True,
        ),
        16384,
        4,
    ),
}


def peak_bytes() -> int:
    """The process's peak resident size."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(name: str) -> None:
    """Train two steps and print the bytes above and below the line that the estimate draws."""
    settings, vocab_size, batch = SHAPES[name]
    one = torch.ones(64, 64, requires_grad=True)
    torch.autograd.backward((one @ one).sum())
    torch.optim.AdamW([one]).step()  # what the first of each loads is the process's, not the model's
    before = peak_bytes()
    model = Transformer(settings, vocab_size)
    model.init_weights(0)
    optimizers = build_optimizers(model, TrainSettings())
    tokens = torch.randint(vocab_size, (batch, settings.block_size + 1))
    for _ in range(2):
        for _ in range(2):
            loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            torch.autograd.backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    print(before, peak_bytes() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", choices=SHAPES, help="one shape, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    print(f"{'shape':<52} {'process':>8} {'measured':>9} {'estimate':>9}  ratio")
    for name, (settings, vocab_size, batch) in SHAPES.items():
        command = [sys.executable, __file__, "--measure", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        before, measured = (int(text) / 2**20 for text in output.split())
        estimate = training_bytes(settings, vocab_size, batch) / 2**20
        print(
            f"{name:<52} {before:>5.0f} MB {measured:>6.0f} MB {estimate:>6.0f} MB  {estimate / measured:.2f}"
        )


if __name__ == "__main__":
    main()
