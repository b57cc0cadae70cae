"""A card of a run: the few facts that people compare, to post as text or as a picture."""

from __future__ import annotations

from dataclasses import dataclass

from cpulm.analysis.report import Report
from cpulm.errors import DataError
from cpulm.units import format_bits_per_byte, format_count, format_duration


@dataclass(frozen=True)
class Card:
    """``headline`` is the result, ``facts`` are pairs of a label and a value."""

    title: str
    headline: str
    facts: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """The card as plain text."""
        width = max(len(label) for label, _ in self.facts)
        lines = [f"{label:<{width}}  {value}" for label, value in self.facts]
        return "\n".join((self.title, self.headline, *lines)) + "\n"


def card_of(report: Report) -> Card:
    """Make the card of a run.

    Raises:
        DataError: if the run has not been validated.
    """
    figures = report.figures
    if figures.best_loss is None or figures.best_bits_per_byte is None:
        raise DataError(f"{report.path} has no validation yet", "make its card when it has")
    headline = format_bits_per_byte(figures.best_bits_per_byte, figures.text_lost)
    facts = [
        ("machine", f"{figures.device_name or 'unknown'}, {figures.threads} threads, {figures.precision}"),
        ("time", f"{format_duration(figures.seconds)} of training"),
        (
            "text",
            f"{format_count(figures.train_tokens or 0)} tokens, vocabulary {figures.vocab_size or 0:,}; "
            f"trained on {format_count(figures.tokens)}, {figures.epochs:.1f} passes",
        ),
        ("model", f"{format_count(figures.params_total or 0)} parameters"),
        ("loss", f"{figures.best_loss:.4f} nats per token on held-out text"),
    ]
    if report.standing is not None:
        usual = report.standing.expected
        facts.append(
            ("usual", f"{usual.loss:.2f} bits per byte, 8 of 10 from {usual.low:.2f} to {usual.high:.2f}")
        )
    facts.append(("made with", f"cpulm {figures.version}"))
    return Card(f"{report.name}: a language model trained from scratch", headline, tuple(facts))
