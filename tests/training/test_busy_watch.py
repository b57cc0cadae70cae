"""What a run says after minutes beside other programs: once, and only if two processes may be faster."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpulm.events import Event, Notice
from cpulm.execution.adaptive_threads import AdaptiveThreads
from cpulm.settings import TrainSettings
from cpulm.training.busy_watch import PATIENCE_SECONDS, SHORTEST_UPDATE_SECONDS, BusyWatch


def said(
    *,
    others: float = 2.0,
    seconds: float = 1.0,
    most: int = 2,
    rows: int = 4,
    processes: int = 1,
    minutes: float = 10.0,
    slower_with_more: bool = True,
) -> list[str]:
    """What a run says in so many minutes beside programs that use ``others`` processors."""
    seen: list[Event] = []
    watch = BusyWatch(seen.append, Path("runs/night"), TrainSettings(micro_batch_size=rows), processes)
    clock = 0.0
    threads = AdaptiveThreads(
        most, others=lambda: others, short_waits=lambda _: None, use=lambda _: None, now=lambda: clock
    )
    while clock < 60 * minutes:
        one = seconds * (threads.threads if slower_with_more else 1 / threads.threads)
        clock += one
        watch.update_done(one, threads)
        threads.update_done(one)
    return [event.message for event in seen if isinstance(event, Notice)]


def test_after_minutes_with_one_of_two_threads_a_run_says_once_what_to_type() -> None:
    assert said(minutes=PATIENCE_SECONDS / 60) == []
    [message] = said()
    assert "left this run one of its 2 threads for 3m 00s" in message
    assert "`cpulm resume runs/night --nproc 2`" in message


@pytest.mark.parametrize(
    "run",
    [
        {"others": 0.0},
        {"slower_with_more": False},
        {"seconds": SHORTEST_UPDATE_SECONDS / 2},
        {"most": 4},
        {"rows": 3},
        {"processes": 2},
    ],
    ids=str,
)
def test_where_two_processes_would_not_help_nothing_is_said(run: dict[str, float]) -> None:
    assert said(**run) == []  # type: ignore[arg-type]  # a test's table of floats and ints
