"""Measurements of a comparison: memory of a program and its helpers, steps between two updates."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peer_steps, peers

MB = 1_000_000
HOLDING = "import sys, time; held = bytearray({}); held[::4096] = bytes(len(held[::4096])); {}"


@pytest.mark.slow
def test_the_peak_of_memory_is_of_a_program_and_its_helpers_at_one_time() -> None:
    helper = HOLDING.format(100 * MB, "time.sleep(1.5)")
    helped = f"{{}}; import subprocess; subprocess.run([sys.executable, '-c', {helper!r}])"
    base = peers.run_watched([sys.executable, "-c", "import time; time.sleep(0.5)"], {}).own_peak_bytes
    for what, together in (("pass", 250), ("time.sleep(0.5); del held", 150)):
        script = HOLDING.format(150 * MB, helped.format(what))
        found = peers.run_watched([sys.executable, "-c", script], {})
        assert (together - 10) * MB <= found.peak_bytes - base < (together + 60) * MB
        assert 140 * MB <= found.own_peak_bytes - base < 200 * MB


def test_a_program_that_fails_ends_the_comparison_with_what_it_said() -> None:
    with pytest.raises(SystemExit, match="no such clone"):
        peers.run_watched([sys.executable, "-c", "raise SystemExit('no such clone')"], {})


@pytest.mark.slow
def test_our_run_gives_the_end_of_every_update(tmp_path: Path, fresh_cache: Path) -> None:
    (tmp_path / "cache").symlink_to(fresh_cache)
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 200, encoding="utf-8")
    small = ["data.tokenizer=byte", "model.n_layer=1", "model.n_embd=32", "model.n_head=2"]
    small += [
        "model.block_size=32",
        "train.micro_batch_size=2",
        "sample.max_new_tokens=0",
        "log.report=false",
    ]
    options = [word for setting in small for word in ("--set", setting)]
    precision, ends, done = peers.ours("tiny", text, 3, tmp_path, [*options, "--precision", "fp32"])
    assert precision == "fp32"
    assert len(ends) == 3
    assert ends == sorted(ends)
    assert done.peak_bytes >= done.own_peak_bytes > 50 * MB


def test_ratios_are_of_the_steps_and_of_the_peaks() -> None:
    ours = peers.Measured(rounds=[[1.0, 1.0, 5.0], [2.0, 2.0, 2.0]], peaks=[300, 400])
    theirs = peers.Measured(rounds=[[3.0, 3.0, 3.0], [4.0, 4.0, 9.0]], peaks=[1000, 900])
    found = peers.ratio("peer", ours, {"peer": theirs})
    assert found == {"median": 1.75, "least": 2.0, "most": 3.0, "memory": 0.4}


def test_rows_lie_side_by_side_and_the_rest_is_left_out(tmp_path: Path) -> None:
    np.arange(10, dtype=np.uint16).tofile(tmp_path / "train.bin")
    rows = peer_steps.Rows(tmp_path / "train.bin", 4)
    assert [rows[i]["input_ids"] for i in range(len(rows))] == [[0, 1, 2, 3], [4, 5, 6, 7]]
