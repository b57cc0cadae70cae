"""One line that shows what a command waits for, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.status import Status
from rich.text import Text

from cpulm.ui.console import is_utf8, stderr
from cpulm.ui.terminal_text import harmless
from cpulm.units import format_duration


@contextmanager
def waiting(message: str) -> Iterator[Callable[[], None]]:
    """Show ``message`` on stderr during the block; call the yielded function to update the time.

    On a terminal the line disappears when the block ends. In a pipe it is written once.
    """
    console = stderr()
    words, began = harmless(message), time.monotonic()
    if not console.is_terminal:
        console.print(words, soft_wrap=True)
        yield lambda: None
        return
    spinner = "dots" if is_utf8(console.file) else "line"  # type: ignore[arg-type]
    with Status(Text(words), console=console, spinner=spinner) as status:
        yield lambda: status.update(Text(f"{words}, {format_duration(int(time.monotonic() - began))}"))
