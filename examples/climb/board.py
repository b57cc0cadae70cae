"""A MoonBoard route as text for the terminal, and as a picture."""

from rules import COLUMNS, ROWS

LETTERS = "ABCDEFGHIJK"
_COLOURS = {"start": "#2e9e44", "move": "#2468c8", "end": "#d23b3b"}
_STEP, _EDGE = 34, 40


def kinds_of(holds):
    """Start, move or end, by hold: the end is what lies on the top row, the start the lowest hold."""
    top = max(ROWS)
    return {hold: "end" if hold[1] == top else "start" if hold == holds[0] else "move" for hold in holds}


def as_text(grade, holds):
    """The board with the route's holds numbered in the order of climbing."""
    numbers = {hold: number for number, hold in enumerate(holds, start=1)}
    lines = [f"{grade}, {len(holds)} holds"]
    for y in reversed(ROWS):
        cells = (f"{numbers[x, y]:>3}" if (x, y) in numbers else "  ·" for x in COLUMNS)
        lines.append(f"{y:>2} {''.join(cells)}")
    return "\n".join([*lines, "   " + "".join(f"  {letter}" for letter in LETTERS)])


def as_svg(grade, holds):
    """The board as a picture: start green, end red, the moves as a line."""
    width, height = 2 * _EDGE + 10 * _STEP, 2 * _EDGE + 16 * _STEP + 24

    def at(hold):
        return _EDGE + hold[0] * _STEP, height - _EDGE - (hold[1] - 1) * _STEP

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"',
        'font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#f6e7b8"/>',
        f'<text x="{width / 2}" y="24" font-size="18" text-anchor="middle">{grade}</text>',
    ]
    for x in COLUMNS:
        left, _ = at((x, 1))
        where = f'x="{left}" y="{height - 10}"'
        parts.append(f'<text {where} font-size="12" text-anchor="middle">{LETTERS[x]}</text>')
    for y in ROWS:
        _, low = at((0, y))
        parts.append(f'<text x="14" y="{low + 4}" font-size="12" text-anchor="middle">{y}</text>')
        parts += [f'<circle cx="{at((x, y))[0]}" cy="{low}" r="4" fill="#bda96b"/>' for x in COLUMNS]
    line = " ".join(f"{x},{y}" for x, y in map(at, holds))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#555" stroke-width="2" opacity="0.6"/>')
    kinds = kinds_of(holds)
    for number, hold in enumerate(holds, start=1):
        x, y = at(hold)
        parts.append(f'<circle cx="{x}" cy="{y}" r="12" fill="{_COLOURS[kinds[hold]]}"/>')
        parts.append(
            f'<text x="{x}" y="{y + 4}" font-size="12" fill="white" text-anchor="middle">{number}</text>'
        )
    return "\n".join([*parts, "</svg>"])
