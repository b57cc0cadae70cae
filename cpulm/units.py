"""Parses and formats durations, sizes and counts."""

from __future__ import annotations

import math
import re

_SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
LONGEST = 1e12
"""Seconds, over 30,000 years: durations must be shorter."""

_DURATION_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)")


def parse_duration(text: str | float) -> float:
    """Parse the seconds in ``"90"``, ``"90s"``, ``"10min"``, ``"1h30m"`` or ``"1.5h"``.

    Raises:
        ValueError: if the text is not a positive duration.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        total = float(text) if abs(text) < LONGEST else math.inf
    else:
        total, at, source = 0.0, 0, str(text).strip().lower()
        while at < len(source):
            match = _DURATION_PART.match(source, at)
            unit = match.group(2) if match else ""
            if match is None or (unit and unit not in _SECONDS) or (not unit and at):
                raise ValueError(f"{text!r} is not a duration such as 90s, 10min or 1h30m")
            total += float(match.group(1)) * _SECONDS[unit or "s"]
            at = match.end()
    if not 0 < total < LONGEST:
        raise ValueError(f"{text!r} is not a positive duration such as 90s, 10min or 1h30m")
    return total


def typed_duration(seconds: float) -> str:
    """The duration as people type it, exactly: ``8h``, ``1h30m``, ``90s`` as ``1m30s``, ``0.5s``."""
    if seconds < 1 or not float(seconds).is_integer():
        return f"{seconds}s"
    rest, parts = int(seconds), ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        parts += f"{count}{unit}" if count else ""
    return parts


def format_duration(seconds: float) -> str:
    """``0.4s``, ``42s``, ``3m 05s``, ``2h 07m``, ``1d 03h``: two units at most; ``?`` if not finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def format_bytes(count: float) -> str:
    """``512 B``, ``1.5 KiB``, ``24.0 GiB``: binary units, as the machine reports them."""
    if abs(count) < 1023.5:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        if abs(count) < 1023.95 or unit == "TiB":
            break
    return f"{count:.1f} {unit}"


def format_count(count: float) -> str:
    """``999``, ``19.5 K``, ``10.7 M``, ``1.20 B``: three significant digits."""
    if abs(count) < 999.5:
        return f"{count:.0f}" if float(count).is_integer() else f"{count:.3g}"
    for unit in ("K", "M", "B", "T"):
        count /= 1000
        if abs(count) < 999.5 or unit == "T":
            break
    digits = 2 if abs(count) < 9.995 else 1 if abs(count) < 99.95 else 0
    return f"{count:.{digits}f} {unit}"


def format_bits_per_byte(value: float, text_lost: float) -> str:
    """``1.2345 bits per byte``; marked if the tokenizer loses a share ``text_lost`` of the text."""
    mark = f" (not comparable: the tokenizer loses {text_lost:.1%} of the text)" if text_lost else ""
    return f"{value:.4f} bits per byte{mark}"
