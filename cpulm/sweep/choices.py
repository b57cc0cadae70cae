"""Chooses the values to try: a grid over lists of values, or random draws."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cpulm.errors import SettingsError

_RANGE = re.compile(r"\s*([-+]?[\d._]+(?:[eE][-+]?\d+)?)\s*\.\.\s*([-+]?[\d._]+(?:[eE][-+]?\d+)?)\s*")
_TRIES = 100

Combination = tuple[str, ...]
"""One value per axis, as text."""


@dataclass(frozen=True)
class Axis:
    """A setting and its values to try: ``values`` as text, or a range from ``low`` to ``high``."""

    key: str
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    whole: bool = False

    @property
    def is_range(self) -> bool:
        return self.low is not None

    def draw(self, source: random.Random) -> str:
        """Draw a value; from a range of positive numbers uniformly on a log scale."""
        if self.low is None or self.high is None:
            return source.choice(self.values)
        if self.low > 0:
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = source.uniform(self.low, self.high)
        return str(round(value)) if self.whole else f"{value:.3g}"

    def ends(self) -> Iterator[str]:
        """Texts that must be valid for the setting, so that everything between them is."""
        if self.low is None or self.high is None:
            yield from self.values
        else:
            yield from (str(round(end)) if self.whole else repr(end) for end in (self.low, self.high))


def axes_of(assignments: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """Split assignments into those of one value and axes of several: ``lr=1e-3,2e-3``, ``lr=1e-4..1e-2``.

    Commas within brackets or quotes do not separate values: ``data.source=[a,b],[c]`` has two values.

    Raises:
        SettingsError: if a range is invalid, or a setting is given twice.
    """
    fixed, axes = [], []
    seen: set[str] = set()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if equals and key in seen:
            raise SettingsError(f"--set {key} is given twice", f"give its values together: --set {key}=A,B")
        seen.add(key)
        values = split_values(text)
        match = _RANGE.fullmatch(text)
        if match is not None and equals:
            axes.append(_range(key, *match.groups()))
        elif len(values) > 1 and equals:
            if not all(values):
                raise SettingsError(
                    f"--set {assignment}: a value is empty", "write A,B without a comma at the end"
                )
            axes.append(Axis(key, tuple(dict.fromkeys(values))))
        else:
            fixed.append(assignment)
    return fixed, axes


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    return [part.strip() for part in parts]


def _range(key: str, low: str, high: str) -> Axis:
    try:
        first, last = float(low), float(high)
    except ValueError:
        raise SettingsError(
            f"--set {key}={low}..{high} is not a range", f"such as --set {key}=1e-4..1e-2"
        ) from None
    if not first < last:
        raise SettingsError(f"--set {key}={low}..{high}: the range is empty", "put the lower end first")
    whole = re.fullmatch(r"[-+]?\d+", low) is not None and re.fullmatch(r"[-+]?\d+", high) is not None
    return Axis(key, low=first, high=last, whole=whole)


def grid(axes: Sequence[Axis]) -> list[Combination]:
    """Return every combination; the last axis changes fastest.

    Raises:
        SettingsError: if an axis is a range.
    """
    for axis in axes:
        if axis.is_range:
            raise SettingsError(
                f"--set {axis.key}={axis.low:g}..{axis.high:g} is a range, which a grid cannot enumerate",
                "draw values from it: --random 8",
            )
    return list(itertools.product(*(axis.values for axis in axes)))


def drawn(axes: Sequence[Axis], seed: int) -> Iterator[Combination]:
    """Yield distinct random combinations, determined by the seed, until no new one is found."""
    source = random.Random(seed)
    seen: set[Combination] = set()
    tries = 0
    while tries < _TRIES:
        combination = tuple(axis.draw(source) for axis in axes)
        tries = tries + 1 if combination in seen else 0
        if combination not in seen:
            seen.add(combination)
            yield combination
