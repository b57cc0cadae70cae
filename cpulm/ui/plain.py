"""Plain lines for pipes and logs: aligned and sparse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cpulm.events import (
    CheckpointSaved,
    Event,
    GenerationStarted,
    Notice,
    Progress,
    RolledBack,
    RunFinished,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
)
from cpulm.ui.console import say, show_warning
from cpulm.ui.snapshot import Snapshot, StageProgress, fold
from cpulm.ui.terminal_text import figure, harmless, significant
from cpulm.ui.terminal_text import fold as fold_text
from cpulm.ui.words import (
    amount,
    describe_average,
    describe_generation,
    describe_model,
    describe_rollback,
    describe_run,
    end_lines,
    rate,
)
from cpulm.units import format_bits_per_byte, format_bytes, format_count, format_duration

_EVERY_SECONDS = 5.0
_QUIET_SECONDS = 2.0
_SAMPLE_LINES = 8
_SAMPLE_WIDTH = 100


@contextmanager
def plain_lines() -> Iterator[PlainLines]:
    """Lines on stderr: steps and stages about every five seconds, everything else immediately."""

    def write(line: str) -> None:
        say(line.rstrip())

    yield PlainLines(write)


class PlainLines:
    """Turns events into lines.

    Args:
        write: called with one line without its end.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._snapshot = Snapshot()
        self._shown_step: StepDone | None = None
        self._shown_stage_time = 0.0

    def join(self, snapshot: Snapshot) -> None:
        """Write the current state of a run that began earlier in a few lines; its further events follow."""
        self._snapshot = snapshot
        if snapshot.started is not None:
            for line in _lines(snapshot.started):
                self._write(line)
        if snapshot.best is not None:
            for line in _lines(snapshot.best):
                self._write(line)
        if snapshot.finished is not None:
            self._show_end(snapshot.finished, snapshot)
        elif snapshot.step is not None:
            self._show_step(snapshot.step)

    def __call__(self, event: Event) -> None:
        self._snapshot = now = fold(self._snapshot, event)
        if isinstance(event, StepDone):
            last = self._shown_step
            if last is None or event.time - last.time >= _EVERY_SECONDS:
                self._show_step(event)
        elif isinstance(event, Progress):
            self._show_progress(event, now)
        elif isinstance(event, Notice):
            self._show_notice(event)
        elif isinstance(event, RolledBack):
            show_warning(describe_rollback(event))
        elif isinstance(event, RunFinished):
            self._show_end(event, now)
        else:
            for line in _lines(event):
                self._write(line)

    def _show_step(self, event: StepDone) -> None:
        self._shown_step = event
        self._write(step_line(event, self._snapshot))

    def _show_progress(self, event: Progress, now: Snapshot) -> None:
        stage = now.stages[-1] if event.finished else now.stage
        if stage is None or stage.seconds < _QUIET_SECONDS:
            return
        if event.finished or event.time - self._shown_stage_time >= _EVERY_SECONDS:
            self._shown_stage_time = event.time
            self._write(stage_line(stage))

    def _show_notice(self, event: Notice) -> None:
        if event.level == "warning":
            show_warning(event.message)
        else:
            self._write(harmless(event.message, keep_lines=True))

    def _show_end(self, event: RunFinished, now: Snapshot) -> None:
        if now.step is not None and now.step is not self._shown_step:
            self._show_step(now.step)
        for line in end_lines(event):
            self._write(line)


def step_line(event: StepDone, snapshot: Snapshot) -> str:
    """``step 120/2000  loss 3.4120  lr 2.0e-03  muon_lr 1.3e-02  12.1 it/s  9.3 K tok/s  eta 3m 05s``."""
    started = snapshot.started
    if started is not None and started.steps is not None:
        total = str(started.steps)
        where = f"step {event.step:>{len(total)}}/{total}"
    else:
        where = f"step {event.step:>6} {event.progress:4.0%}"
    parts = [where, f"loss {figure(event.loss):>7}"]
    if event.teacher_divergence is not None:
        parts.append(f"kl {figure(event.teacher_divergence):>6}")
    parts.append(f"lr {event.lr:.1e}")
    if event.muon_lr is not None:
        parts.append(f"muon_lr {event.muon_lr:.1e}")
    parts.append(f"norm {significant(event.grad_norm):>5}")
    steps, tokens = snapshot.pace.steps_per_second, snapshot.pace.tokens_per_second
    left = snapshot.seconds_left
    if steps is not None and tokens is not None:
        parts += [f"{significant(steps):>5} it/s", f"{format_count(tokens):>6} tok/s"]
    if left is not None:
        parts.append(f"eta {format_duration(left)}")
    return "  ".join(parts)


def stage_line(stage: StageProgress) -> str:
    """``tokenizing  34%  12.1 MiB of 35.6 MiB  4.2 MiB/s  eta 6s``."""
    last = stage.last
    parts = [harmless(last.stage)]
    if stage.fraction is not None and not last.finished:
        parts.append(f"{stage.fraction:4.0%}")
    of = f" of {amount(last.total, last.unit)}" if last.total is not None and not last.finished else ""
    if last.unit:
        parts.append(amount(last.done, last.unit) + of)
    if last.unit and stage.per_second is not None:
        parts.append(rate(stage.per_second, last.unit))
    if last.finished:
        parts.append(f"done in {format_duration(stage.seconds)}")
    elif stage.seconds_left is not None:
        parts.append(f"eta {format_duration(stage.seconds_left)}")
    return "  ".join(parts)


def _lines(event: Event) -> list[str]:
    if isinstance(event, RunStarted):
        return [describe_model(event), describe_run(event), *(harmless(note) for note in event.notes)]
    if isinstance(event, GenerationStarted):
        return [describe_generation(event)]
    if isinstance(event, Validated):
        part = "" if event.whole else " (a part)"
        return [
            f"validation{part} at step {event.step}: loss {figure(event.loss)}{describe_average(event)}, "
            f"{format_bits_per_byte(event.bits_per_byte, event.text_lost)}, "
            f"perplexity {significant(event.perplexity, 4)}, "
            f"{format_duration(event.seconds)}{', the best so far' if event.best else ''}"
        ]
    if isinstance(event, CheckpointSaved):
        return [
            f"checkpoint at step {event.step}: {harmless(event.path)} ({event.role}, "
            f"{format_bytes(event.bytes)}, {format_duration(event.seconds)})"
        ]
    if isinstance(event, SampleMade):
        text = harmless(event.prompt + event.text, keep_lines=True)
        body = [f"  | {line}" for line in fold_text(text, _SAMPLE_WIDTH, _SAMPLE_LINES)]
        return [f"sample at step {event.step}:", *body]
    return []
