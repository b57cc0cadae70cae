"""The part of the text that a vocabulary is learned from."""

from __future__ import annotations

import json
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


def test_rows_are_sampled_up_to_the_same_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that is larger than the limit, evenly; the bytes of a block of rows are read at once."""
    monkeypatch.setattr(vocabulary, "SAMPLE_BYTES", 1 << 16)
    rows = [f"row {number} of many short ones" for number in range(8000)]
    for name, lines in {
        "a.csv": ["text", *rows],
        "a.jsonl": [json.dumps({"text": row}) for row in rows],
    }.items():
        sample = sampled(tmp_path / name, "\n".join(lines))
        assert 0.9 < len(sample) / vocabulary.SAMPLE_BYTES < 1.1
        assert "row 7" in sample[-(1 << 10) :]


@pytest.mark.parametrize("run", ["acgt", "东京", "7", " \n", "=-", "a_", "aA"])
def test_long_runs_of_one_class_are_cut_for_learning(run: str) -> None:
    """A merge looks through the whole of each word, so that a word of a megabyte takes minutes."""
    texts = ["a b" * 500, "x; " + run * 5000 + " end", "." * 100, "", "short"]
    parts = list(_without_long_words(texts))
    assert "".join(parts) == "".join(texts)
    assert {"a b" * 500, "." * 100} <= set(parts), "ordinary text stays whole"
    assert max(len(part) for part in parts if set(part) <= set(run)) == (0 if run == "a_" else 64)
