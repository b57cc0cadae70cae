"""The part of the text that a vocabulary is learned from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cpulm.data import vocabulary
from cpulm.data.prepare import scan_sources
from cpulm.data.sources import find_files
from cpulm.data.tokenizer import _without_long_words
from cpulm.data.unfinished import Unfinished
from cpulm.settings import DataSettings


def sampled(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    data = DataSettings(source=[str(path)])
    work = Unfinished(path.with_suffix(".tokens"))
    corpus = scan_sources(data, find_files(data.source), (), lambda _: None, lambda: False, work)
    return "".join(vocabulary._Sample(corpus).texts())


def test_text_that_does_not_repeat_is_sampled_up_to_a_limit(tmp_path: Path) -> None:
    """Training keeps every distinct piece in memory; ordinary text of the same size is taken whole."""
    rng, size = random.Random(1), 2 * vocabulary.DISTINCT_BYTES
    unique = "".join(rng.choices("ACGT", k=size))
    assert len(sampled(tmp_path / "dna.txt", unique)) < 1.1 * vocabulary.DISTINCT_BYTES
    prose = "the cat sat on the mat; " * (size // 24)
    assert len(sampled(tmp_path / "prose.txt", prose)) > 0.94 * len(prose)


@pytest.mark.parametrize("run", ["acgt", "东京", "7", " \n", "=-", "a_", "aA"])
def test_long_runs_of_one_class_are_cut_for_learning(run: str) -> None:
    """A merge looks through the whole of each word, so that a word of a megabyte takes minutes."""
    texts = ["a b" * 500, "x; " + run * 5000 + " end", "." * 100, "", "short"]
    parts = list(_without_long_words(texts))
    assert "".join(parts) == "".join(texts)
    assert {"a b" * 500, "." * 100} <= set(parts), "ordinary text stays whole"
    assert max(len(part) for part in parts if set(part) <= set(run)) == (0 if run == "a_" else 64)
