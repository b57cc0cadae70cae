"""Bits per byte of a text by nanoGPT's evaluation, and the number of its updates in a given time."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks import wikitext


class Uniform(torch.nn.Module):
    """Every character as likely as any other; remembers what it was asked."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, idx: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append((idx, targets))
        logits = torch.zeros(*idx.shape, self.vocab_size)
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_every_character_but_the_first_is_scored_once_after_the_one_before_it() -> None:
    numbers = wikitext.vocabulary_of("abcdefgh")
    text = wikitext.encoded("abcdefgh" * 5, numbers)
    model = Uniform(8)
    assert wikitext.bits_per_byte(model, text, block_size=4, rows=3) == pytest.approx(39 * 3 / 40)
    inputs = torch.cat([idx.flatten() for idx, _ in model.asked])
    targets = torch.cat([wanted.flatten() for _, wanted in model.asked])
    assert inputs.tolist() == text.ids[:-1].tolist()
    assert targets.tolist() == text.ids[1:].tolist()


def test_a_character_that_training_has_not_seen_costs_nothing_and_its_bytes_count() -> None:
    numbers = wikitext.vocabulary_of("ab")
    text = wikitext.encoded("ab€ab", numbers)
    assert text.ids.tolist() == [0, 1, 0, 1]
    assert (text.bytes, text.characters_left_out) == (7, 1)
    assert wikitext.bits_per_byte(Uniform(2), text, block_size=2) == pytest.approx(3 / 7)


def test_the_text_is_prepared_as_nanogpt_reads_it(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (clone / "config").mkdir(parents=True)
    (clone / "configurator.py").touch()
    numbers = wikitext.prepare("hello world" * 10, clone, tmp_path / "run")
    data = tmp_path / "run" / "data" / "wikitext2"
    train, val = (np.fromfile(data / f"{split}.bin", dtype=np.uint16) for split in ("train", "val"))
    meta = pickle.loads((data / "meta.pkl").read_bytes())
    assert meta["vocab_size"] == len(numbers) == 8
    assert "".join(meta["itos"][i] for i in [*train, *val]) == "hello world" * 10
    assert (len(train), len(val)) == (99, 11)


def test_updates_fill_the_time_with_their_evaluations_and_the_start() -> None:
    log = "\n".join(f"iter {i}: loss 4.1, time {900 if i % 250 == 0 else 40}.00ms, mfu 0" for i in range(501))
    # 500 updates in 20 s; three evaluations and a start of one second each.
    updates = wikitext.updates_in(112.0, probe_seconds=24.0, probe_log=log)
    assert updates == 2500
    assert updates * 0.04 + (updates // 250 + 2) * 1.0 == pytest.approx(112.0)
    assert wikitext.updates_in(1.0, 24.0, log) == 250


def test_a_log_without_updates_is_an_error() -> None:
    with pytest.raises(ValueError, match="median"):
        wikitext.updates_in(10.0, 24.0, "compiling")
    assert math.isfinite(wikitext.updates_in(10.0, 1.0, "iter 1: loss 1, time 1.00ms, mfu 0"))
