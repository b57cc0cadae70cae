"""What text is made of, for people: the report of ``cpulm tokenize --inspect``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from cpulm.ui.tables import key_values, rows
from cpulm.units import format_bytes

if TYPE_CHECKING:
    from cpulm.data.survey import Lengths, SampleDocument, Survey

_BAR_CELLS = 30


def text_report(survey: Survey) -> Iterator[RenderableType]:
    """Yield the parts of the report, with an empty line between them."""
    yield key_values("Text", _facts(survey))
    yield ""
    if survey.documents > 1:
        yield rows("Documents by length", ["tokens", "documents", ""], _histogram(survey.lengths))
        yield ""
    yield rows("Most frequent tokens", ["token", "count", "share"], _frequent(survey))
    yield ""
    if survey.secrets:
        found = [(kind, f"{count:,}", first) for kind, (count, first) in survey.secrets.items()]
        yield rows("Likely secrets", ["kind", "count", "the first one"], found)
        yield ""
    if survey.troubles:
        troubles = [(kind, f"{count:,}") for kind, count in survey.troubles.items()]
        yield rows("Damaged text", ["kind", "places"], troubles)
        yield ""
    for number, sample in enumerate(survey.samples):
        if number:
            yield ""
        yield key_values(sample.name, [("text", repr(sample.text)[1:-1]), ("tokens", _joined(sample))])


def _facts(survey: Survey) -> Sequence[tuple[str, object]]:
    lengths, (unused, first) = survey.lengths, survey.never_used
    some = f", such as {' '.join(map(repr, first[:8]))}" if unused else ""
    alone = "" if survey.documents > 1 else " (--document and --separator divide a file)"
    facts = [
        ("documents", f"{survey.documents:,}{alone}"),
        ("text", format_bytes(survey.text_bytes)),
        ("tokens", f"{survey.tokens:,}, {survey.bytes_per_token:.2f} bytes each"),
        ("never used", f"{unused:,} of the vocabulary's entries{some}"),
    ]
    if survey.documents > 1:
        facts += [
            ("length", f"{lengths.smallest:,} to {lengths.largest:,} tokens, median {lengths.median:,}"),
            ("duplicates", f"{survey.duplicates:,} documents (--dedup leaves them out)"),
            ("near duplicates", _near_duplicates(survey)),
        ]
    return facts


def _near_duplicates(survey: Survey) -> str:
    found = f"{survey.near_duplicates:,} of {survey.compared:,} documents compared"
    others = ", ".join(f"{count:,} {reason}" for reason, count in survey.not_compared.items())
    return f"{found}; not compared: {others}" if others else found


def _histogram(lengths: Lengths) -> list[tuple[str, str, str]]:
    most = max((count for _, _, count in lengths.bars), default=1)
    return [
        (_span(low, high - 1), f"{count:,}", "#" * -(-count * _BAR_CELLS // max(1, most)))
        for low, high, count in lengths.bars
    ]


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _frequent(survey: Survey) -> list[tuple[str, str, str]]:
    return [
        (repr(text), f"{count:,}", f"{count / max(1, survey.tokens):.1%}") for text, count in survey.frequent
    ]


def _joined(sample: SampleDocument) -> str:
    return "|".join(repr(token)[1:-1] for token in sample.tokens)
