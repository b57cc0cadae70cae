"""Expects the validation loss of a model of some size on some text after some training; loads no torch.

The law is that of Hoffmann et al. (https://arxiv.org/abs/2203.15556) with the repetition of Muennighoff et
al. (https://arxiv.org/abs/2305.16264), beside what n-grams of bytes reach on the same text::

    L = c D'^-s (e + a / N^alpha + b / D'^beta)

for a model of N million parameters without embeddings and D' million bytes: those trained on, where each
pass over the text is worth less than the one before. ``c D^-s`` are the bits per byte of the validation text
by n-grams that were counted in D million bytes of the training text (:mod:`cpulm.data.byte_ngrams`), so that
a text that was never measured has a level and a slope of its own. The loss is the best of the run: a text
seen too often does not undo it.

The constants were measured by ``benchmarks/laws.py``, which writes the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

MILLION = 1e6
_STRANGE_SPREAD = 0.5
"""How much less certain the law is of a text that n-grams predict better or worse than those measured: by so
much of the logarithm of the difference. Routes on a climbing board, 0.9 bits per byte by n-grams, came to 0.7
times what it says."""
_NORMAL_80 = 1.2816
"""80% of a normal distribution are within so many standard deviations."""


@dataclass(frozen=True)
class TextCurve:
    """How n-grams predict a text: in ``level * D ** -slope`` bits per byte after D million bytes."""

    level: float
    slope: float


USUAL_TEXT = TextCurve(2.3, 0.06)
"""English prose."""


@dataclass(frozen=True)
class Expectation:
    """An expected loss; 8 of 10 runs are between ``low`` and ``high``, all in bits per byte."""

    loss: float
    low: float
    high: float

    def times(self, factor: float) -> Expectation:
        """The same in another unit."""
        return Expectation(self.loss * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class LearningLaw:
    """The constants of the law, and what they were fitted to.

    Attributes:
        repeats: the number of repetitions after which another one is worth 1/e of a new pass.
        text_spread: standard deviation of the logarithm of the level from text to text.
        run_spread: standard deviation of the logarithm of a run's loss on one text.
        most_passes: the most passes over a text that were measured.
        sizes: the smallest and the largest model that was measured, in parameters without embeddings.
        levels: of the texts that were measured, the lowest and the highest.
    """

    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    repeats: float
    text_spread: float
    run_spread: float
    most_passes: float
    sizes: tuple[float, float]
    levels: tuple[float, float]

    def expected(
        self, params: float, trained_bytes: float, unique_bytes: float, text: TextCurve
    ) -> Expectation:
        """Expect the loss of a run; passes beyond those measured are left out.

        Args:
            params: of the model, without embeddings.
            trained_bytes: of text, each pass counted.
            unique_bytes: of the training text.
        """
        worth = self.worth_bytes(trained_bytes, unique_bytes) / MILLION
        ngrams = text.level * worth**-text.slope
        size_term = self.a * (params / MILLION) ** -self.alpha
        loss = ngrams * (self.floor + size_term + self.b * worth**-self.beta)
        usual = min(max(text.level, self.levels[0]), self.levels[1])
        strange = _STRANGE_SPREAD * abs(math.log(text.level / usual))
        text_spread = self.text_spread and self.text_spread + strange
        spread = math.exp(_NORMAL_80 * math.hypot(text_spread, self.run_spread))
        return Expectation(loss, loss / spread, loss * spread)

    def worth_bytes(self, trained_bytes: float, unique_bytes: float) -> float:
        """How many bytes of new text the training is worth."""
        unique = min(trained_bytes, unique_bytes)
        passes = min(trained_bytes / unique, self.most_passes)
        return unique * (1.0 + self.repeats * (1.0 - math.exp(-(passes - 1.0) / self.repeats)))

    def on_one_text(self) -> LearningLaw:
        """The law for a text whose level was measured."""
        return replace(self, text_spread=0.0)


@lru_cache
def measured_law() -> LearningLaw:
    """Read the law that ships with cpulm."""
    constants = json.loads((Path(__file__).parent / "learning_law.json").read_text(encoding="utf-8"))
    pairs = {name: tuple(constants[name]) for name in ("sizes", "levels")}
    return LearningLaw(**{**constants, **pairs})
