"""A running sweep: a table redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cpulm.ui.console import say, stderr
from cpulm.ui.tables import rows
from cpulm.ui.terminal_text import figure, harmless
from cpulm.ui.watch import Mode
from cpulm.units import format_count, format_duration

if TYPE_CHECKING:
    from cpulm.sweep.run_sweep import Board
    from cpulm.sweep.trial_status import TrialStatus

_LINE_SECONDS = 30.0
_FRAME_LINES = 5
"""The title, the table's head, and a spare line at the bottom."""


@dataclass(frozen=True)
class SweepView:
    """``show`` displays the state, ``say`` a message."""

    show: Callable[[Board], None]
    say: Callable[[str], None]


@contextmanager
def sweep_view(mode: Mode) -> Iterator[SweepView]:
    """Show a sweep on stderr during the block."""
    if mode != "live":
        yield SweepView(_Lines(), lambda line: say(harmless(line)))
        return
    console = stderr()
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield SweepView(
            lambda board: live.update(board_table(board, console.height), refresh=True),
            lambda line: console.print(Text(harmless(line)), soft_wrap=True),
        )


class _Lines:
    """A line for every trial that begins or ends, and every half minute one for the sweep."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._said = time.monotonic()

    def __call__(self, board: Board) -> None:
        for trial in board.trials:
            before = self._states.get(trial.name, "waiting")
            self._states[trial.name] = trial.state
            if trial.state != before and trial.state != "waiting":
                say(_line(trial))
        if time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            say(headline(board))
            for trial in board.trials:
                if trial.state == "running":
                    say(_line(trial))


def _line(trial: TrialStatus) -> str:
    best = "" if trial.bits_per_byte is None else f", best {figure(trial.bits_per_byte)} bits per byte"
    return harmless(f"{trial.name}: {trial.state}, step {_step(trial)}{best}")


def headline(board: Board) -> str:
    """``sweeps/tiny-1: 3 of 8 done, rung 1 of 2, eta 12m 05s``."""
    there = sum(trial.state not in ("waiting", "running") for trial in board.trials)
    parts = [f"{board.folder.path}: {there} of {len(board.trials)} done"]
    if board.rungs:
        towards = f"rung {board.rung + 1} of {board.rungs}" if board.rung < board.rungs else "to the end"
        parts.append(towards)
    if board.seconds_left is not None:
        parts.append(f"eta {format_duration(board.seconds_left)}")
    return harmless(", ".join(parts))


def board_table(board: Board, height: int) -> RenderableType:
    """All trials; if they do not fit into the window, the running and the best ones."""
    room = max(1, height - _FRAME_LINES)
    shown = list(board.trials)
    if len(shown) > room:
        by_weight = sorted(shown, key=_weight)[:room]
        shown = [trial for trial in shown if trial in by_weight]
    return Group(Text(headline(board), style="bold"), trials_table(shown))


def trials_table(trials: list[TrialStatus]) -> RenderableType:
    """One line per trial."""
    table = [
        [
            trial.name,
            trial.state,
            _step(trial),
            format_count(trial.tokens),
            None if trial.bits_per_byte is None else figure(trial.bits_per_byte),
        ]
        for trial in trials
    ]
    return rows("", ["trial", "state", "step", "tokens", "bits/byte"], table)


def _weight(trial: TrialStatus) -> tuple[bool, float]:
    score = float("inf") if trial.bits_per_byte is None else trial.bits_per_byte
    return trial.state != "running", score


def _step(trial: TrialStatus) -> str:
    return f"{trial.step:,}" if trial.steps is None else f"{trial.step:,}/{trial.steps:,}"
