"""Trains nanochat on a text for some minutes and scores it on another; called by ``wikitext.py``.

    PYTHONPATH=. python benchmarks/peer_text.py CLONE FOLDER VOCAB_SIZE MINUTES LR_SCALE

FOLDER has train.bin, val.bin and test.bin. The model, its optimizer, their schedules of learning rate,
momentum and weight decay and all their defaults are nanochat's, of its scripts/base_train.py, compiled; the
shape is that of ``peer_steps.py``; LR_SCALE is what that script makes of the tokens in an update, or what is
tried in its place. The minutes are those of updates alone: their number comes from the median time of some
before it. The weights are the best on val.bin. Prints a JSON object with the nats over the whole of test.bin.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.peer_steps import BLOCK_SIZE, collector_at_rest, nanochat_model, random_rows
from benchmarks.wikitext import windows

WARM, PROBED, VALIDATIONS = 10, 40, 30
Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Schedule:
    """Of base_train.py: 40 updates up, 65 % of all down to a twentieth; momentum up, and down with it.

    Args:
        updates: all of them.
        weight_decay: at the start; its cosine ends at zero.
    """

    updates: int
    weight_decay: float

    def apply(self, optimizer: Any, update: int) -> None:
        down = round(0.65 * self.updates)
        left = min(1.0, (self.updates - update) / max(1, down))
        rate = (update + 1) / 40 if update < 40 else 0.05 + 0.95 * left
        momentum = 0.85 + 0.12 * update / 400 if update < 400 else 0.90 + 0.07 * left
        decay = self.weight_decay * 0.5 * (1 + math.cos(math.pi * update / self.updates))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if group["kind"] == "muon":
                group["momentum"], group["weight_decay"] = momentum, decay


def optimizer_of(model: Any, lr_scale: float) -> tuple[Any, float]:
    """With the defaults of base_train.py, and the weight decay of its rule for this model."""
    counts = model.num_scaling_params()
    horizon = 12 * (counts["transformer_matrices"] + counts["lm_head"])
    # Of its model of depth 12, 768 wide, with a vocabulary of 32,768, by the same count.
    reference = 12 * (12 * 12 * 768**2 + 768 * 32_768)
    decay = 0.28 * lr_scale * reference / horizon
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * lr_scale,
        embedding_lr=0.3 * lr_scale,
        scalar_lr=0.5 * lr_scale,
        matrix_lr=0.02 * lr_scale,
        weight_decay=decay,
    )
    return optimizer, decay


def step(model: Any, built: torch.nn.Module, optimizer: Any, batch: tuple[torch.Tensor, ...]) -> None:
    loss = model(*batch)
    loss.backward()
    optimizer.step()
    built.zero_grad(set_to_none=True)
    loss.item()


@torch.no_grad()
def nats(model: torch.nn.Module, tokens: Tokens, rows: int = 8) -> float:
    """The loss of all tokens but the first, in adjacent windows."""
    return math.fsum(float(model(x, y)) * y.numel() for x, y in windows(tokens, BLOCK_SIZE, rows))


def median_update(model: Any, built: Any, tokens: Tokens) -> float:
    """Seconds per update, from some updates that are then discarded."""
    optimizer, _ = optimizer_of(built, 1.0)
    generator = np.random.default_rng(1)
    took = []
    for number in range(WARM + PROBED):
        began = time.perf_counter()
        step(model, built, optimizer, random_rows(tokens, generator))
        took.append(time.perf_counter() - began)
        if number == 0:
            collector_at_rest()
    built.init_weights()
    return statistics.median(took[WARM:])


def main() -> None:
    clone, folder, vocab_size, minutes, lr_scale = sys.argv[1:]
    sys.path.insert(0, clone)
    names = ("train", "val", "test")
    train, val, test = (np.fromfile(Path(folder) / f"{name}.bin", np.uint16) for name in names)
    torch.manual_seed(42)
    built = nanochat_model(int(vocab_size))
    model = torch.compile(built, dynamic=False)
    updates = max(1, round(60 * float(minutes) / median_update(model, built, train)))
    optimizer, decay = optimizer_of(built, float(lr_scale))
    schedule, generator = Schedule(updates, decay), np.random.default_rng(0)
    every = max(1, updates // VALIDATIONS)
    best, best_step, weights, validations = math.inf, 0, {}, []
    began = time.perf_counter()
    for update in range(updates):
        schedule.apply(optimizer, update)
        step(model, built, optimizer, random_rows(train, generator))
        if (update + 1) % every == 0 or update + 1 == updates:
            loss = nats(built, val) / (len(val) - 1)
            validations.append(round(loss, 4))
            if loss < best:
                best, best_step, weights = loss, update + 1, copy.deepcopy(built.state_dict())
    seconds = time.perf_counter() - began
    built.load_state_dict(weights)
    result = {"nats": nats(built, test), "steps": updates, "best_step": best_step, "validations": validations}
    result |= {"seconds": seconds, "params": sum(p.numel() for p in built.parameters())}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
