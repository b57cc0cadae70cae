"""The inspection of a model in the terminal: a short form of what the page shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.style import Style
from rich.text import Text

from cpulm.ui.canvas import UNICODE, Drawing, Glyphs, Line, Palette, bar, box, exactly, text
from cpulm.ui.chart import chart
from cpulm.ui.curve import Bucket
from cpulm.ui.tables import key_values, rows
from cpulm.ui.terminal_text import figure, harmless
from cpulm.units import format_bits_per_byte

if TYPE_CHECKING:
    from cpulm.inspection.model_report import Alternative, Head, ModelReport, Passage, PositionLoss

_CHART_HEIGHT = 12
_BAR = 24
_MOST_ALTERNATIVES = 8
_MOST_SURPRISES = 6
_TOKEN_CELLS = 16

LEVELS: tuple[tuple[float, Style], ...] = (
    (1.0, Style(color="grey58")),
    (3.0, Style()),
    (5.0, Style(color="orange3")),
    (8.0, Style(color="indian_red1", underline=True)),
    (float("inf"), Style(color="indian_red1", bold=True, reverse=True)),
)
"""Styles of a surprise below this many nats; the highest two are distinguishable without colour."""


def inspection_screen(look: ModelReport, width: int, glyphs: Glyphs = UNICODE) -> RenderableType:
    """The report on a model; charts are ``width`` cells wide."""
    spaced: list[RenderableType] = []
    for part in _parts(look, width, glyphs):
        spaced += [part, ""]
    return Group(*spaced[:-1])


def _parts(look: ModelReport, width: int, glyphs: Glyphs) -> Iterator[RenderableType]:
    yield _summary(look)
    yield _by_position(look.by_position, width, glyphs)
    yield _by_kind(look)
    yield _passage(look.passage)
    yield _most_surprising(look.passage)
    yield _next_token(look, glyphs)
    yield _neighbours(look, width)
    yield _attention(look.attention.heads)
    yield _unused(look)


def _summary(look: ModelReport) -> RenderableType:
    part = "" if look.tokens == look.text_tokens else f" of {look.text_tokens:,}, spread evenly over it"
    return key_values(
        "The inspected model",
        [
            ("checkpoint", f"{look.checkpoint}, step {look.step:,}"),
            ("text", f"{look.text}: {look.tokens:,} tokens{part}"),
            (
                "loss",
                f"{figure(look.loss)} nats per token, "
                f"{format_bits_per_byte(look.bits_per_byte, look.text_lost)}",
            ),
        ],
    )


def _by_position(positions: PositionLoss, width: int, glyphs: Glyphs) -> RenderableType:
    """The curve over the tokens of context, with one standard error to either side."""
    errors = np.nan_to_num(positions.standard_error)
    columns = (positions.first, positions.last, positions.loss, errors)
    places = zip(*(column.tolist() for column in columns), strict=True)
    # A position has one more token of context than its number.
    curve = [Bucket(first + 1, last + 1, loss - e, loss + e, loss, 1) for first, last, loss, e in places]
    drawn = chart(curve, [], width - 2, _CHART_HEIGHT - 2, glyphs)
    note = "nats, by tokens of context"
    return Drawing([*box("loss by position", drawn, width, _CHART_HEIGHT, glyphs, note), []])


def _by_kind(look: ModelReport) -> RenderableType:
    records = [
        (
            each.kind,
            figure(each.loss, 3),
            "-" if each.tokens < 2 else figure(each.standard_error, 3),
            f"{each.share:.1%}",
            f"{each.loss_share:.1%}",
            " ".join(shown(token) for token in each.examples[:2]),
        )
        for each in look.by_kind
    ]
    columns = ["kind of token", "loss", "error", "of tokens", "of the loss", "such as"]
    return rows("Loss by kind of token", columns, records)


def _passage(passage: Passage) -> RenderableType:
    """The text, each token in the style of its surprise."""
    title = Text("A passage by its surprise in nats: ", style="bold")
    below = 0.0
    for limit, style in LEVELS:
        words = f"{below:.0f} to {limit:.0f}" if limit < float("inf") else f"over {below:.0f}"
        title.append(f"under {limit:.0f}" if not below else words, style + Style(bold=bool(style.bold)))
        title.append("  ")
        below = limit
    title.rstrip()
    body = Text(overflow="fold")
    for token, surprise in zip(passage.tokens, passage.surprise.tolist(), strict=True):
        words = harmless(token, keep_lines=True)
        # Blanks before a word would be underlined with it.
        blanks = len(words) - len(words.lstrip(" ")) if words.strip() else 0
        body.append(words[:blanks])
        body.append(words[blanks:], style=style_of(surprise))
    return Group(title, body)


def style_of(surprise: float) -> Style:
    """The style of a token; a token without context has none."""
    return next((style for limit, style in LEVELS if surprise < limit), Palette.plain)


def _most_surprising(passage: Passage) -> RenderableType:
    order = np.argsort(np.nan_to_num(passage.surprise, nan=-1.0), kind="stable")[::-1].tolist()
    # If a token surprises in several places, the worst one counts.
    first = dict[str, int]()
    for at in order:
        if passage.alternatives[at]:
            first.setdefault(passage.tokens[at], at)
    chosen = list(first.values())[:_MOST_SURPRISES]
    records = [
        (
            shown(passage.tokens[at]),
            f"{passage.surprise[at]:.2f}",
            f"{passage.rank[at]:,}",
            ", ".join(_alternative(each) for each in passage.alternatives[at][:3]),
        )
        for at in chosen
    ]
    return rows("Its most surprising tokens", ["token", "nats", "rank", "expected instead"], records)


def _alternative(each: Alternative) -> str:
    return f"{shown(each.token)} {each.probability:.0%}"


def _next_token(look: ModelReport, glyphs: Glyphs) -> RenderableType:
    prompt = shown(look.next_token.prompt)
    # The end of the prompt matters most.
    if len(prompt) > 2 * _TOKEN_CELLS:
        prompt = f"{glyphs.ellipsis}{prompt[-2 * _TOKEN_CELLS :]}"
    title = [text("Next token ", Palette.value), text(f"after {prompt}", Palette.label)]
    lines: list[Line] = [title]
    for each in look.next_token.alternatives[:_MOST_ALTERNATIVES]:
        word = shown(each.token)
        if cell_len(word) > _TOKEN_CELLS:
            word = f"{word[: _TOKEN_CELLS - 1]}{glyphs.ellipsis}"
        token = exactly([text(f"  {word}")], _TOKEN_CELLS + 2)
        lines.append([*token, *bar(each.probability, _BAR, glyphs), text(f" {each.probability:>6.1%}")])
    spread = f"  entropy {look.next_token.entropy:.2f} nats: like choosing among "
    lines.append(
        [text(f"{spread}{np.exp(look.next_token.entropy):,.0f} equally likely tokens", Palette.label)]
    )
    return Drawing([*lines, []])


def _neighbours(look: ModelReport, width: int) -> RenderableType:
    """A line for each token, with as many neighbours as fit, at least one."""
    room = width - max((cell_len(shown(each.token)) for each in look.neighbours), default=0) - 4
    pairs = []
    for each in look.neighbours:
        near = [f"{shown(one.token)} {one.cosine:.2f}" for one in each.nearest]
        while len(near) > 1 and cell_len("  ".join(near)) > room:
            near.pop()
        pairs.append((shown(each.token), "  ".join(near)))
    return key_values("Nearest embeddings, by cosine", pairs)


def _attention(heads: tuple[Head, ...]) -> RenderableType:
    """The heads with the most extreme figures."""

    def name(head: Head) -> str:
        return f"layer {head.layer} head {head.head}"

    previous = max(heads, key=lambda head: head.to_previous)
    first = max(heads, key=lambda head: head.to_first)
    farthest = max(heads, key=lambda head: head.distance)
    sharpest = min(heads, key=lambda head: head.entropy)
    return key_values(
        "Attention over the prompt",
        [
            ("previous token", f"{name(previous)}: {previous.to_previous:.0%} of its attention"),
            ("first token", f"{name(first)}: {first.to_first:.0%}"),
            ("farthest back", f"{name(farthest)}: {farthest.distance:.1f} tokens"),
            ("lowest entropy", f"{name(sharpest)}: entropy {sharpest.entropy:.2f} nats"),
        ],
    )


def _unused(look: ModelReport) -> RenderableType:
    units = sum(layer.units for layer in look.units)
    dead = sum(layer.never_active for layer in look.units)
    constant = sum(layer.constant for layer in look.units)
    vocabulary = look.vocabulary
    unused = "unknown" if vocabulary.unused is None else f"{vocabulary.unused:,}"
    rare = "" if vocabulary.rare is None else f"; {vocabulary.rare:,} more occur there at most ten times"
    return key_values(
        "Unused",
        [
            ("hidden units", f"{dead:,} never active, {constant:,} constant, of {units:,}"),
            ("vocabulary", f"{unused} of {vocabulary.vocab_size:,}: {vocabulary.note}{rare}"),
        ],
    )


def shown(token: str) -> str:
    """A token in quotes, with visible line ends and blanks."""
    return harmless(repr(token))
