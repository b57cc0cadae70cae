"""How predictable a text is by n-grams of bytes."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from cpulm.data import byte_ngrams
from cpulm.data.byte_ngrams import bits_per_byte, text_curve
from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.settings.resolve_settings import resolve


def tokens_of(folder: Path, train: str, val: str) -> TokenFolder:
    (folder / "train.txt").write_text(train, encoding="utf-8")
    (folder / "val.txt").write_text(val, encoding="utf-8")
    sources = [f"data.source={folder / 'train.txt'}", f"data.val_source={folder / 'val.txt'}"]
    settings = resolve(assignments=[*sources, "data.tokenizer=byte"])
    return prepare(settings.data, emit=lambda _: None, should_stop=lambda: False)


def as_numbers(text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def test_the_loss_is_that_of_the_formula() -> None:
    """abababab, then the fourth byte of "abab": after a, ba and aba comes b, always."""
    p = 1 / 256
    p = (4 - 0.75 + 0.75 * 2 * p) / 8  # b is four of eight bytes, two different ones
    p = (4 - 0.75 + 0.75 * 1 * p) / 4  # after a, of which four have a next byte
    for seen in (3, 3):  # after ba and after aba
        p = (seen - 0.75 + 0.75 * 1 * p) / seen
    assert bits_per_byte(as_numbers("abababab"), as_numbers("abab")) == pytest.approx(-math.log2(p))


def test_the_distribution_sums_to_one() -> None:
    train = as_numbers("the cat sat on the mat; the rat saw the cat")
    probabilities = [
        2 ** -bits_per_byte(train, np.array([*as_numbers("the"), byte], dtype=np.int64))
        for byte in range(256)
    ]
    assert sum(probabilities) == pytest.approx(1.0)


def test_a_text_that_repeats_is_more_predictable_than_one_of_random_letters(tmp_path: Path) -> None:
    letters = random.Random(0)
    noise = "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=20_000))
    curves = []
    for number, text in enumerate(("the cat sat on the mat and the rat saw the cat; " * 400, noise)):
        folder = tmp_path / str(number)
        folder.mkdir()
        curve = text_curve(tokens_of(folder, text, text[:3000] if number == 0 else noise[::-1][:3000]))
        assert curve is not None
        curves.append(curve)
    (easy, _), (hard, slope) = curves
    assert easy < 0.5
    assert 4.0 < hard * 0.02**-slope < 6.0  # log2(26) is 4.7; 20 kB are too few for all n-grams


def test_a_text_of_one_letter_has_a_level(tmp_path: Path) -> None:
    curve = text_curve(tokens_of(tmp_path, "a" * 20_000, "a" * 20_000))
    assert curve is not None
    assert 0 < curve[0] < 0.01


def test_another_validation_text_is_less_predictable(tmp_path: Path) -> None:
    train = "the cat sat on the mat and the rat saw the cat; " * 400
    levels = []
    for number, val in enumerate((train[:2000], "Sphinx of black quartz, judge my vow! " * 50)):
        (tmp_path / str(number)).mkdir()
        curve = text_curve(tokens_of(tmp_path / str(number), train, val))
        assert curve is not None
        levels.append(curve[0])
    assert levels[1] > 3 * levels[0]


def test_a_text_that_is_too_short_says_nothing(tmp_path: Path) -> None:
    assert text_curve(tokens_of(tmp_path, "the cat sat on the mat " * 20, "the rat " * 10)) is None


def test_a_text_of_a_few_pieces_has_the_usual_slope(tmp_path: Path) -> None:
    rhyme = "the cat sat on the mat and the rat saw the cat; "
    curve = text_curve(tokens_of(tmp_path, rhyme * 50, rhyme * 10))
    assert curve is not None
    assert curve[1] == byte_ngrams._USUAL_SLOPE
