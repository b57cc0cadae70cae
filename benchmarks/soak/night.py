"""Trains a hundred thousand steps in one process and checks that memory does not grow.

A day of training in small: 24 hours at the default checkpoint interval are 144 checkpoints, and so has
this run; it validates and writes a sample every 250 steps, as by default, keeps its record, and draws the
live dashboard on a pseudo-terminal whose output is thrown away.
"""

from __future__ import annotations

import contextlib
import os
import pty
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.soak import small
from cpulm.events import Event, Listener, StepDone
from cpulm.run_dir import RunDir

CHECKPOINTS = 144
MOST_GROWTH_PERCENT = 5.0
MARKS = (0.05, 0.25, 0.5, 0.75, 1.0)


def night(steps: int) -> dict[str, Any]:
    """Train ``steps`` steps; return memory, log and screen at each of :data:`MARKS`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small.own_cache(folder / "cache")
        settings = small.settings_for(
            small.write_text(folder),
            "model.n_embd=8",
            "model.n_head=1",
            "model.dropout=0",
            "train.optimizer=adamw",
            "model.block_size=8",
            "train.micro_batch_size=1",
            f"train.steps={steps}",
            f"checkpoint.every_steps={max(1, steps // CHECKPOINTS)}",
            f"eval.every={min(250, max(1, steps // 20))}",
            "sample.max_new_tokens=20",
        )
        run = RunDir(folder / "run")
        drawn = [0]
        began = time.monotonic()
        with _dashboard(drawn) as show:
            watch = _Watch(run, steps, drawn, show)
            small.train(settings, run.path, watch)
            threads = threading.active_count()
        seconds = time.monotonic() - began
        first, last = watch.table[0], watch.table[-1]
        return {
            "steps": len(small.recorded_steps(run)),
            "seconds": round(seconds, 1),
            "at": watch.table,
            "memory_growth_percent": round(100 * (last["memory_bytes"] / first["memory_bytes"] - 1), 2),
            "record_bytes_per_step": round(last["record_bytes"] / steps, 1),
            "threads_at_the_end": threads,
        }


class _Watch:
    """Passes events on to the dashboard and measures at the marks."""

    def __init__(self, run: RunDir, steps: int, drawn: list[int], show: Listener) -> None:
        self.table: list[dict[str, Any]] = []
        self._run, self._drawn, self._show = run, drawn, show
        self._marks = [round(mark * steps) for mark in MARKS]
        self._process = psutil.Process()

    def __call__(self, event: Event) -> None:
        self._show(event)
        if isinstance(event, StepDone) and event.step in self._marks:
            self.table.append(
                {
                    "step": event.step,
                    "memory_bytes": self._process.memory_info().rss,
                    "record_bytes": self._run.metrics.stat().st_size,
                    "screen_bytes": self._drawn[0],
                    "open_files": self._process.num_fds(),
                }
            )


@contextlib.contextmanager
def _dashboard(drawn: list[int]) -> Iterator[Listener]:
    """The live dashboard on a pseudo-terminal; ``drawn`` counts the bytes that it takes."""
    master, slave = pty.openpty()
    saved = os.dup(2)
    os.dup2(slave, 2)
    os.environ.update(TERM="xterm-256color", COLUMNS="140", LINES="40")

    def drain() -> None:
        with contextlib.suppress(OSError):
            while read := os.read(master, 65536):
                drawn[0] += len(read)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    from cpulm.ui.watch import watch

    try:
        with watch("live") as listener:
            yield listener
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(slave)
        thread.join(1.0)
        os.close(master)


def told(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    lines = [f"{result['steps']:,} steps in {result['seconds']:,.0f} s"]
    lines.append(f"{'step':>8} {'memory':>10} {'record':>10} {'to the screen':>14} {'files':>6}")
    lines += [
        f"{at['step']:>8,} {at['memory_bytes'] / 2**20:>6.1f} MiB {at['record_bytes'] / 2**20:>6.1f} MiB "
        f"{at['screen_bytes'] / 2**20:>10.1f} MiB {at['open_files']:>6}"
        for at in result["at"]
    ]
    lines.append(f"memory at the end against that after the first 5 %: {result['memory_growth_percent']:+} %")
    lines.append(f"record: {result['record_bytes_per_step']} bytes a step")
    return lines
