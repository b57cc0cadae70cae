"""nanochat in the comparison: its schedules, and that every token but the first is scored once."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks import peer_steps, peer_text


def groups_at(update: int, updates: int = 1000) -> list[dict[str, float | str]]:
    groups: list[dict[str, float | str]] = [
        {"kind": "muon", "initial_lr": 0.02},
        {"kind": "adamw", "initial_lr": 0.004},
    ]
    peer_text.Schedule(updates, weight_decay=0.4).apply(SimpleNamespace(param_groups=groups), update)
    return groups


@pytest.mark.parametrize(
    ("update", "rate", "momentum", "decay"),
    [
        (0, 1 / 40, 0.85, 0.4),
        (39, 1.0, 0.85 + 0.12 * 39 / 400, 0.4 * 0.5 * (1 + math.cos(math.pi * 0.039))),
        (350, 1.0, 0.85 + 0.12 * 350 / 400, 0.4 * 0.5 * (1 + math.cos(math.pi * 0.35))),
        (675, 0.525, 0.935, 0.4 * 0.5 * (1 + math.cos(math.pi * 0.675))),
        (1000, 0.05, 0.90, 0.0),
    ],
)
def test_rates_rise_stay_and_fall_to_a_twentieth(
    update: int, rate: float, momentum: float, decay: float
) -> None:
    muon, adamw = groups_at(update)
    assert muon["lr"] == pytest.approx(0.02 * rate)
    assert adamw["lr"] == pytest.approx(0.004 * rate)
    assert muon["momentum"] == pytest.approx(momentum)
    assert muon["weight_decay"] == pytest.approx(decay)
    assert "momentum" not in adamw


def test_every_token_but_the_first_is_scored_once() -> None:
    asked: list[torch.Tensor] = []

    class Uniform(torch.nn.Module):
        def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            asked.append(targets.flatten())
            return functional.cross_entropy(torch.zeros(targets.numel(), 5), targets.flatten())

    tokens = (np.arange(20 * peer_steps.BLOCK_SIZE + 7) % 5).astype(np.uint16)
    assert peer_text.nats(Uniform(), tokens) == pytest.approx((len(tokens) - 1) * math.log(5), rel=1e-5)
    assert torch.cat(asked).tolist() == tokens[1:].tolist()
