"""Time of one training step of cpulm's two blocks, and of nanoGPT if a clone is given.

All variants run in one process and in turns, so that whatever else the machine does falls on all alike:

    python benchmarks/blocks.py --nanogpt ../nanoGPT --shape char --rounds 30

A step is forward, backward, gradient clipping and one fused AdamW update, in float32 without compile and
without the compiled kernels unless its name says so.
nanoGPT's GELU is the exact one; GPT-2's own is the tanh form, which torch runs at a third of the speed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpulm.execution.runtime import choose_runtime
from cpulm.execution.update import StepTimer, training_update
from cpulm.settings import ModelSettings, RuntimeSettings, Settings, TrainSettings
from cpulm.system.machine import read_machine
from cpulm.system.precisions import has_fast_int8
from cpulm.training.build import build_random_parts

Step = Callable[[], Any]

# name: (n_layer, n_head, n_embd, block_size, micro_batch_size, vocab_size)
SHAPES = {
    "char": (4, 4, 128, 64, 12, 65),
    "10.7M": (6, 6, 384, 256, 12, 65),
}
GPT2 = {
    "norm": "layernorm",
    "position": "learned",
    "bias": False,
    "qk_norm": False,
    "norm_eps": 1e-5,
}


def our_step(
    shape: tuple[int, ...],
    *,
    precision: Any = "fp32",
    kernels: Any = "off",
    optimizer: Any = "adamw",
    **parts: Any,
) -> Step:
    """A step of our model with the given parts."""
    n_layer, n_head, n_embd, block_size, batch, vocab = shape
    threads = torch.get_num_threads()
    settings = Settings(
        model=ModelSettings(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size, **parts),
        train=TrainSettings(optimizer=optimizer, lr=1e-3, micro_batch_size=batch),
        runtime=RuntimeSettings(device="cpu", threads=threads, precision=precision, kernels=kernels),
    )
    runtime = choose_runtime(settings.runtime, read_machine())
    built = build_random_parts(settings, vocab, runtime)
    return lambda: training_update(built, (0,), runtime, 1.0, StepTimer())


def nanogpt_step(shape: tuple[int, ...], folder: Path) -> Step:
    """A step of nanoGPT's model with its own parameter groups, and AdamW fused like ours."""
    n_layer, n_head, n_embd, block_size, batch, vocab = shape
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    with contextlib.redirect_stdout(io.StringIO()):
        config = peer.GPTConfig(block_size, vocab, n_layer, n_head, n_embd, dropout=0.0, bias=False)
        model = peer.GPT(config)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(vocab, (batch, block_size + 1), generator=torch.Generator().manual_seed(0))
    idx, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    parameters = list(model.parameters())

    def step() -> None:
        model(idx, targets)[1].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return step


def in_turns(steps: dict[str, Step], rounds: int, inner: int) -> dict[str, list[float]]:
    """Seconds per step of every variant, one value per round of ``inner`` steps."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(inner):
                step()
            seconds[name].append((time.perf_counter() - start) / inner)
    return seconds


def report(title: str, seconds: dict[str, list[float]]) -> None:
    """Minimum and median of each variant, and the median of its ratios to the first one, round by round."""
    print(f"\n{title}")
    first = next(iter(seconds.values()))
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, first, strict=True))
        best, middle = min(own), statistics.median(own)
        print(f"  {name:<22} min {best * 1e3:8.2f} ms  median {middle * 1e3:8.2f} ms  ratio {ratio:5.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="folder of a clone of nanoGPT")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.shape or SHAPES:
        steps: dict[str, Step] = {}
        if arguments.nanogpt:
            steps["nanoGPT"] = nanogpt_step(SHAPES[name], arguments.nanogpt)
        steps["cpulm, GPT-2 block"] = our_step(SHAPES[name], **GPT2, mlp="gelu_erf")
        steps["the same, tanh gelu"] = our_step(SHAPES[name], **GPT2, mlp="gelu")
        steps["cpulm, Qwen3 block"] = our_step(SHAPES[name])
        steps["the same, kernels"] = our_step(SHAPES[name], kernels="auto")
        if has_fast_int8(read_machine().instruction_sets):
            steps["the same, int8"] = our_step(SHAPES[name], kernels="auto", precision="int8")
            steps["the same, int8, Muon"] = our_step(
                SHAPES[name], kernels="auto", precision="int8", optimizer="muon"
            )
        inner = 5 if name == "char" else 1
        report(f"{name} {SHAPES[name]}", in_turns(steps, arguments.rounds, inner))


if __name__ == "__main__":
    main()
