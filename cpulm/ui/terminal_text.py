"""Text for a terminal: made harmless, measured in cells, wrapped and cut."""

from __future__ import annotations

import math
import unicodedata

from rich.cells import cell_len, chop_cells, set_cell_size

_TAB = "    "
_DANGEROUS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that can move the cursor, change the writing direction or have no glyph."""

_CONTROLS = {
    code: "\ufffd"
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}


def harmless(text: str, *, keep_lines: bool = False) -> str:
    """Remove everything from ``text`` that a terminal would interpret.

    Tabs become four spaces; control, format and unassigned characters become U+FFFD; variation selectors
    are removed. Line ends are kept with ``keep_lines``, else they become spaces.
    """
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\t", _TAB)
    end = "\n" if keep_lines else " "
    return "".join(end if char == "\n" else _shown(char) for char in text)


def without_controls(text: str) -> str:
    """Replace what a terminal would obey, but for line ends and tabs, by U+FFFD, one cell for each."""
    return text if text.isascii() and text.isprintable() else text.translate(_CONTROLS)


def _shown(char: str) -> str:
    if char.isascii():
        return char if " " <= char <= "~" else "\ufffd"
    if "\ufe00" <= char <= "\ufe0f":
        return ""
    return "\ufffd" if unicodedata.category(char) in _DANGEROUS else char


def written_in(text: str, encoding: str) -> str:
    """Replace each cell that ``encoding`` cannot represent by ``?``; the width does not change."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        known = (char if _is_in(char, encoding) else "?" * cell_len(char) for char in text)
        return set_cell_size("".join(known), cell_len(text))
    return text


def _is_in(char: str, encoding: str) -> bool:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def fit(text: str, width: int, *, ellipsis: str = "…") -> str:
    """``text`` in exactly ``width`` cells: padded, or cut with an ellipsis at its end."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    kept = set_cell_size(text, max(0, width - 1)).rstrip()
    return set_cell_size(kept + ellipsis, width)


def fold(text: str, width: int, height: int) -> list[str]:
    """At most ``height`` lines of at most ``width`` cells; indentation is kept, long lines are wrapped."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines.extend(chop_cells(line.rstrip(), width) or [""])
        if len(lines) >= height:
            break
    return lines[:height]


def figure(value: float, digits: int = 4, *, limit: float = 1e4) -> str:
    """A number with ``digits`` decimals, in scientific notation from ``limit``; also ``nan`` and ``inf``."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.{digits}f}" if abs(value) < limit else f"{value:.2e}"


def significant(value: float, digits: int = 3) -> str:
    """A number with at most ``digits`` significant digits: ``0.421``, ``12.1``, ``181``."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, digits)}f}"
