"""The screen of a run: a pure function of a snapshot and the window's size."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import RenderableType

from cpulm.ui import panels
from cpulm.ui.canvas import UNICODE, Drawing, Glyphs, Line, Palette, bar, beside, block, box, text
from cpulm.ui.snapshot import Snapshot
from cpulm.ui.terminal_text import figure, harmless, significant
from cpulm.ui.words import end_lines
from cpulm.units import format_bytes, format_count, format_duration

_LEAST_WIDTH = 60
_LEAST_HEIGHT = 15
_HEADER = 3
_TRAINING = 13
_MACHINE = 7
_SUMMARY_WIDTH = 110
_SUMMARY_HEIGHT = 24
_LOWEST_SUMMARY = 12
_FURTHER_LINES = 8
"""What follows the summary: an empty line, the page, the next commands, the checkpoint, the prompt."""


def render(
    snapshot: Snapshot, width: int, height: int, *, now: float | None = None, glyphs: Glyphs = UNICODE
) -> RenderableType:
    """Render the window: stages before the run starts, then the dashboard, or a few lines in a small window.

    Args:
        snapshot: the state of the run.
        width, height: of the window, in cells. From :data:`_LEAST_WIDTH` x :data:`_LEAST_HEIGHT` on the
            dashboard fills it exactly.
        now: seconds since the epoch, for ages; by default the time of the newest event.
        glyphs: the characters of boxes and curves.
    """
    now = snapshot.time if now is None else now
    if snapshot.started is None:
        return Drawing(_before(snapshot, width, height, now, glyphs))
    if width < _LEAST_WIDTH or height < _LEAST_HEIGHT:
        return Drawing(_compact(snapshot, width, height, now, glyphs))
    return Drawing(_dashboard(snapshot, width, height, now, glyphs))


def render_summary(
    snapshot: Snapshot, width: int, glyphs: Glyphs = UNICODE, height: int = 2 * _SUMMARY_HEIGHT
) -> RenderableType:
    """Render what stays in the terminal after a run: the last frame, how the run ended, its warnings.

    The frame is as low as it must be for its head to stay in a window of ``height`` lines.
    """
    width = min(width, _SUMMARY_WIDTH)
    ends = [] if snapshot.finished is None else end_lines(snapshot.finished)
    warnings = tuple(notice for notice in snapshot.notices if notice.level == "warning")
    warned = panels.notices(snapshot._replace(notices=warnings), width, 2 * len(warnings) + 2)
    room = height - len(warned) - len(ends) - _FURTHER_LINES
    frame = max(_LOWEST_SUMMARY, min(_SUMMARY_HEIGHT, room))
    fits = width >= _LEAST_WIDTH
    lines = _dashboard(snapshot, width, frame, snapshot.time, glyphs)[:-1] if fits else []
    lines += warned
    lines += [[text(f" {words}")] for words in ends]
    return Drawing(lines)


def _dashboard(snapshot: Snapshot, width: int, height: int, now: float, glyphs: Glyphs) -> list[Line]:
    side = min(44, max(30, round(0.28 * width)))
    main = width - side
    body = height - _HEADER - 1
    curve_height = max(6, round(0.6 * body)) if body >= 10 else body
    sample_height = body - curve_height
    inner = main - 2
    curve = panels.curve(snapshot, inner, curve_height - 2, glyphs)
    left = box("loss", curve, main, curve_height, glyphs, f"{glyphs.validation} validation")
    if sample_height >= 3:
        made = snapshot.sample
        title = "sample" if made is None else f"sample at step {made.step:,}"
        left += box(title, panels.sample(snapshot, inner, sample_height - 2), main, sample_height, glyphs)
    right = _side(snapshot, side, body, now, glyphs)
    return [
        *panels.header(snapshot, width, now, glyphs),
        *beside(block(left, main, body), block(right, side, body)),
        panels.footer(snapshot, width, now, glyphs, news=not _has_room_for_notices(body)),
    ]


def _side(snapshot: Snapshot, width: int, height: int, now: float, glyphs: Glyphs) -> list[Line]:
    """Training, machine and notices: the most important first, as many as fit."""
    training = panels.training(snapshot, width - 2, glyphs)
    machine = panels.machine(snapshot, width - 2, now, glyphs)
    if height < _TRAINING + _MACHINE:
        room = height - min(_TRAINING, height)
        lines = box("training", training, width, height - room if room >= 3 else height, glyphs)
        return lines + (box("machine", machine, width, room, glyphs) if room >= 3 else [])
    lines = box("training", training, width, _TRAINING, glyphs)
    room = height - _TRAINING - _MACHINE
    if not _has_room_for_notices(height):
        return lines + box("machine", machine, width, height - _TRAINING, glyphs)
    news = panels.notices(snapshot, width - 2, room - 2)
    lines += box("machine", machine, width, _MACHINE, glyphs)
    return lines + box("notices", news, width, room, glyphs)


def _has_room_for_notices(body_height: int) -> bool:
    return body_height >= _TRAINING + _MACHINE + 4


def _before(snapshot: Snapshot, width: int, height: int, now: float, glyphs: Glyphs) -> list[Line]:
    """Stages before the first step: finished ones, the current one and notices; no empty frames."""
    lines = [panels.stage_done(stage, width, glyphs) for stage in snapshot.stages]
    if snapshot.stage is not None:
        lines.append([text("  "), *panels.stage_bar(snapshot.stage, width - 2, now, glyphs)])
    room = max(1, height - len(lines))
    return [*panels.notices(snapshot, width, room), *lines][-height:]


def _compact(snapshot: Snapshot, width: int, height: int, now: float, glyphs: Glyphs) -> list[Line]:
    """The most important figures first, one line each, for windows too small for boxes."""
    assert snapshot.started is not None
    left = snapshot.seconds_left
    remaining = "" if left is None else f"  {format_duration(left)} left"
    name = text(harmless(snapshot.started.name), Palette.title)
    lines: list[Line] = [
        [name, text(f"  {panels.steps_done(snapshot)}{remaining}")],
        bar(snapshot.progress, width, glyphs),
        *([text(_as_many_as_fit(figures, width))] for figures in _figures(snapshot, now)),
    ]
    if snapshot.stage is not None or snapshot.notices or snapshot.finished is not None:
        lines.insert(3, panels.footer(snapshot, width, now, glyphs))
    lines += panels.sample(snapshot, width, max(0, height - len(lines))) if snapshot.sample else []
    return block(lines, width, height)


def _as_many_as_fit(figures: list[str], width: int) -> str:
    """The first figures that fit into ``width`` cells; a cut figure would read as another number."""
    line, *others = figures
    for other in others:
        if cell_len(line) + 2 + cell_len(other) > width:
            break
        line += f"  {other}"
    return line


def _figures(snapshot: Snapshot, now: float) -> Iterator[list[str]]:
    """The known figures, the most important first in each line."""
    step, validated, best, state = snapshot.step, snapshot.validated, snapshot.best, snapshot.machine
    smoothed, pace = snapshot.smoothed.value, snapshot.pace
    if step is not None:
        mean = [] if smoothed is None else [f"smoothed {figure(smoothed)}"]
        muon = [] if step.muon_lr is None else [f"muon_lr {step.muon_lr:.1e}"]
        if step.teacher_divergence is not None:
            mean.append(f"kl {figure(step.teacher_divergence)}")
        yield [f"loss {figure(step.loss)}", *mean, f"lr {step.lr:.1e}", *muon]
    if validated is not None and best is not None:
        bits = f"bits/byte {'not comparable' if best.text_lost else figure(best.bits_per_byte)}"
        yield [f"validation {figure(validated.loss)}", f"best {figure(best.loss)}", bits]
    if pace.steps_per_second is not None and pace.tokens_per_second is not None:
        yield [f"{significant(pace.steps_per_second)} it/s", f"{format_count(pace.tokens_per_second)} tok/s"]
    if state is not None:
        yield [f"cpu {state.cpu_percent:.0f}%", f"memory {format_bytes(state.process_bytes)}"]
    if snapshot.checkpoint is not None:
        age = format_duration(max(0.0, now - snapshot.checkpoint.time))
        yield [f"checkpoint at step {snapshot.checkpoint.step:,}, {age} ago"]
