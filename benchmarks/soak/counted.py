"""Counts the cases of a long trial on stderr while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

EVERY_SECONDS = 10.0


def counted(name: str, total: int, first: int = 0) -> Iterator[int]:
    """The numbers of ``total`` cases from ``first`` on; every ten seconds a line says how many are done."""
    began = said = time.monotonic()
    for done in range(total):
        now = time.monotonic()
        if now - said >= EVERY_SECONDS:
            said = now
            left = (now - began) / done * (total - done) / 60
            text = f"{name}: {done:,} of {total:,} cases, about {left:.0f} min left"
            print(text, file=sys.stderr, flush=True)
        yield first + done
