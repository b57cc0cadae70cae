"""A run's card as a PNG file."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from cpulm.atomic import replacing
from cpulm.errors import SettingsError
from cpulm.ui.page import palette
from cpulm.ui.page.page import require_vega
from cpulm.ui.terminal_text import harmless

if TYPE_CHECKING:
    from cpulm.analysis.card import Card

_WIDTH, _TOP, _LINE = 800, 150, 34
_LONGEST = 78
"""Characters of a value that fit into the picture."""


def write_card(path: Path, card: Card) -> None:
    """Write the card to ``path``.

    Raises:
        SettingsError: if the library that draws is not installed, or ``path`` cannot be written.
        ResourceError: if the disk is full.
    """
    image = require_vega().svg_to_png(card_svg(card), scale=2.0)
    try:
        with replacing(path) as file:
            file.write(image)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}", "choose another place") from error


def card_svg(card: Card) -> str:
    """The card as SVG: the title, the result in large letters, a line for each fact."""
    colour = palette.on_paper
    height = _TOP + _LINE * len(card.facts) + 16
    size = f'width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">',
        f'<rect {size} fill="{colour("card")}"/>',
        f'<rect width="10" height="{height}" fill="{colour("accent")}"/>',
        _text(40, 48, 20, colour("muted"), card.title),
        _text(40, 104, 42, colour("ink"), card.headline, weight="bold"),
    ]
    for at, (label, value) in enumerate(card.facts):
        y = _TOP + _LINE * at
        parts += [_text(40, y, 16, colour("muted"), label), _text(150, y, 16, colour("ink"), value)]
    return "\n".join((*parts, "</svg>"))


def _text(x: int, y: int, size: int, colour: str, text: str, weight: str = "normal") -> str:
    shown = harmless(text)
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    attributes = f'x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}"'
    return f"<text {attributes}>{escape(shown)}</text>"
