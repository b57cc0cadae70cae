"""What can be climbed on a MoonBoard, for ``cpulm generate --rules rules.py:allowed``.

A route is a list of holds from the bottom to the top, each two words: ``x5 y4``. Columns are 0 to 10, rows 1
to 17.
"""

import itertools
import math

COLUMNS, ROWS = range(11), range(1, 18)
START_ROWS, TOP_ROW = range(1, 7), 17
REACH = 8.0
"""The longest move, in the distance of neighbouring holds: 99.5% of those in the data are no longer."""

HOLDS = [(x, y) for x in COLUMNS for y in ROWS]
STARTS = [(x, y) for x, y in HOLDS if y in START_ROWS]
MOVES = {
    hold: [to for to in HOLDS if to[1] >= hold[1] and to != hold and math.dist(hold, to) <= REACH]
    for hold in HOLDS
}
"""From each hold those that can be reached: in its row or above."""


def holds_in(words):
    """The holds of a route, and the column of one that is begun."""
    numbers = [int(word[1:]) for word in words if word[0] in "xy"]
    holds = list(zip(numbers[::2], numbers[1::2], strict=False))
    return holds, numbers[-1] if len(numbers) % 2 else None


def next_holds(holds):
    """The holds that may come next: none twice, the first in the lower rows, the others within reach."""
    there = set(holds)
    return [hold for hold in (MOVES[holds[-1]] if holds else STARTS) if hold not in there]


def allowed(written):
    """The words that may follow."""
    if "grade" not in written.fields and not written.tokens:
        return None  # the grade
    holds, column = holds_in(written.tokens)
    if column is not None:
        return {f"y{y}" for x, y in next_holds(holds) if x == column}
    words = {f"x{x}" for x, _ in next_holds(holds)}
    return words | {written.end} if holds and holds[-1][1] == TOP_ROW else words


def broken_rule(holds):
    """The first rule that a route breaks; None if it can be climbed."""
    if not holds or any(hold not in MOVES for hold in holds):
        return "on the board"
    if len(set(holds)) < len(holds):
        return "none twice"
    if holds[0][1] not in START_ROWS:
        return "begins below"
    if any(after not in MOVES[before] for before, after in itertools.pairwise(holds)):
        return "within reach"
    return None if holds[-1][1] == TOP_ROW else "ends on top"
