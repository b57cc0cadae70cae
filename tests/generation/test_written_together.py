"""Generations that advance together write what each writes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import a_model

from cpulm.generation import together
from cpulm.generation.generate import Generation
from cpulm.generation.rules.rule import Logits, RuleSet
from cpulm.generation.sampling import Sampling
from cpulm.generation.together import Together
from cpulm.model.transformer import Transformer
from cpulm.native.kernels import Kernels

VOCAB, BLOCK_SIZE = 41, 48
ASKED: Sequence[dict[str, Any]] = (
    {"prompt_ids": [1, 2, 3], "seed": 1},
    {"prompt_ids": list(range(40)), "seed": 2, "num_samples": 3, "max_new_tokens": 60},
    {"prompt_ids": [7], "sampling": Sampling(temperature=0.0, repetition_penalty=1.3)},
    {"prompt_ids": [5] * 45, "seed": 3, "end_ids": [6], "max_new_tokens": 9},
    {"prompt_ids": [9, 8], "seed": 4, "num_samples": 2, "rules": "increasing"},
)
"""Of different lengths, some beyond the context, one with a rule that ends it."""


class Increasing:
    """Each token is larger than the one before it."""

    name = "increasing"

    def __init__(self) -> None:
        self.last = [-1, -1]

    def restrict(self, logits: Logits, rows: Sequence[int]) -> None:
        for row in rows:
            logits[row, : self.last[row] + 1] = -math.inf

    def push(self, row: int, token: int) -> None:
        self.last[row] = token


def begun(model: Transformer, asked: dict[str, Any]) -> Generation:
    rules = RuleSet([Increasing()]) if "rules" in asked else None
    return Generation(model, **{"max_new_tokens": 20, **asked, "rules": rules})


@pytest.mark.parametrize("in_kernels", [True, False])
def test_texts_are_those_that_each_writes_alone(
    in_kernels: bool, kernels_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "READ_AT_ONCE", 16)
    model = a_model(VOCAB, n_embd=64, n_head=2, block_size=BLOCK_SIZE)
    model.use_kernels(Kernels(kernels_library) if in_kernels else None)
    wanted = [list(begun(model, asked)) for asked in ASKED]
    found: dict[Generation, list[list[int | None]]] = {begun(model, asked): [] for asked in ASKED}
    batch, joined, steps = Together(model), list[Generation](), 0
    while joined or steps == 0:
        if steps % 4 == 0:  # they join one after the other
            joined += list(found)[steps // 4 : steps // 4 + 1]
        for generation, logits in batch.step(joined):
            found[generation].append(generation.choose(logits))
        joined = [one for one in joined if not one.has_ended]
        steps += 1
    assert list(found.values()) == wanted


def test_a_long_prompt_does_not_hold_up_the_others() -> None:
    model = a_model(VOCAB, n_embd=64, n_head=2, block_size=512)
    long, short = (
        Generation(model, prompt, max_new_tokens=20) for prompt in ([1] * (4 * together.READ_AT_ONCE), [2])
    )
    batch = Together(model)
    for made in range(1, 6):
        for generation, logits in batch.step([long, short]):
            generation.choose(logits)
        assert (short.made_tokens, long.made_tokens) == (made, max(0, made - 3))


def test_a_prompt_of_several_texts_is_read_once() -> None:
    model = a_model(VOCAB, n_embd=64, n_head=2, block_size=BLOCK_SIZE)
    read: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape))
    several = list(Generation(model, [1, 2, 3], max_new_tokens=9, seed=5, num_samples=4))
    assert read == [(1, 3), *[(4, 1)] * 8]
    alone = list(Generation(model, [1, 2, 3], max_new_tokens=9, seed=5))
    assert [tokens[:1] for tokens in several] == alone
