"""What a plan is: the sizes of model that were compared, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cpulm.estimate.requirements import generations_cost
from cpulm.settings import Settings

PREPARED_BYTES_PER_SECOND = 3e7
"""Of text that is read three times and tokenized, on two cores: half of what an AMD EPYC (Zen 5) does."""


@dataclass(frozen=True)
class Candidate:
    """A size of model and what it can be trained on in the time.

    Attributes:
        place: in the table of shapes.
        tokens: that each generation is trained on, in ``passes`` over the text: no more passes than were ever
            measured.
        spare_seconds: of the time, because more passes and generations are not planned.
        relative_loss: the expected loss in bits per byte of a text like English prose: it ranks the sizes.
    """

    place: int
    settings: Settings
    params: int
    non_embedding: int
    step_seconds: float
    tokens: float
    passes: float
    spare_seconds: float
    relative_loss: float

    @property
    def tokens_per_second(self) -> float:
        return self.settings.tokens_per_step / self.step_seconds

    @property
    def trained_seconds(self) -> float:
        """Of all generations."""
        return self.tokens / self.tokens_per_second * generations_cost(self.settings.train.generations)


@dataclass(frozen=True)
class RunPlan:
    """The best of the ``candidates`` for a time of ``seconds`` and ``text_bytes`` of training text.

    ``share`` is the part of the whole text that these are; ``read_seconds`` is about the time to read the
    files that are read to their ends whatever the share.
    """

    seconds: float
    text_bytes: float
    share: float
    read_seconds: float
    candidates: Sequence[Candidate]
    best: Candidate

    @property
    def prepared_seconds(self) -> float:
        """About how long it takes to read the text and to tokenize what is used of it."""
        return prepared_seconds(self.text_bytes, self.share, self.read_seconds)


def prepared_seconds(text_bytes: float, share: float = 1.0, read_seconds: float = 0.0) -> float:
    """About how long it takes to prepare a share of a text; arguments as of :class:`RunPlan`."""
    return text_bytes / PREPARED_BYTES_PER_SECOND + (1.0 - share) * read_seconds
