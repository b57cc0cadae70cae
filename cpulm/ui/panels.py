"""The panels of the dashboard: each makes lines from a snapshot, independently of the others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from rich.segment import Segment
from rich.style import Style

from cpulm.command import typed
from cpulm.events import END_REASONS, Notice, StepDone, Validated
from cpulm.interrupts import STOPPING
from cpulm.ui.canvas import Glyphs, Line, Palette, apart, bar, exactly, gauge, line_cells, text
from cpulm.ui.chart import chart, step_label
from cpulm.ui.snapshot import Snapshot, StageProgress
from cpulm.ui.terminal_text import figure, fit, fold, harmless, significant
from cpulm.ui.words import NO_PRESET, amount, compilation, rate, threads
from cpulm.units import format_bytes, format_count, format_duration

_UNKNOWN = "-"
_NEWS_SECONDS = 20.0
"""How long a small window's last line shows a notice that is not a warning."""
_HINT_BESIDE_NEWS = 70
"""Cells from which the hint on Ctrl-C stands beside a notice."""
_NO_MARK = Segment("  ")


def header(snapshot: Snapshot, width: int, now: float, glyphs: Glyphs) -> list[Line]:
    """Three lines: the model, the machine, the progress."""
    started = snapshot.started
    assert started is not None
    dot = f" {glyphs.dot} "
    preset = "" if started.preset == NO_PRESET else f"preset {harmless(started.preset)}{dot}"
    model = f"{preset}{format_count(started.params_total)} parameters"
    without = f", {format_count(started.params_non_embedding)} without embeddings"
    name = text(f" {harmless(started.name)}", Palette.title)
    first: Line = [name, text(dot, Palette.faint), text(model)]
    if line_cells(first) + len(without) <= width:
        first.append(text(without))
    version = [text(f"cpulm {harmless(started.version)} ", Palette.faint)]
    how = dot.join([started.precision, compilation(started), threads(started)])
    device = harmless(started.device)
    processor = short_device_name(started.device_name)
    where = device if processor.lower() == device.lower() else f"{device} {processor}"
    words = f" {how}{dot}{where}"
    more = (
        f"{dot}{started.tokens_per_step:,} tokens a step{dot}context {started.block_size:,}"
        f"{dot}vocabulary {started.vocab_size:,}"
    )
    second: Line = [text(words + more if len(words + more) <= width else words, Palette.label)]
    spare = width - line_cells(first) - line_cells(version)
    top = apart(first, version, width) if spare >= 2 else exactly(first, width)
    return [top, exactly(second, width), _way(snapshot, width, now, glyphs)]


def short_device_name(name: str) -> str:
    """The name without trademark signs and clock rate: the dashboard shows the current clock."""
    name = re.sub(r"\((?:R|TM|C)\)|\bCPU\b|@.*$", " ", harmless(name), flags=re.IGNORECASE)
    return " ".join(name.split())


def _way(snapshot: Snapshot, width: int, now: float, glyphs: Glyphs) -> Line:
    """The progress bar with percent, step, epoch, elapsed time and time left."""
    parts = [f"{100 * snapshot.progress:5.1f}%", steps_done(snapshot)]
    generations = 1 if snapshot.started is None else snapshot.started.generations
    if generations > 1:
        parts.append(f"gen {snapshot.generation}/{generations}")
    if width >= 76 and snapshot.step is not None:
        parts.append(f"epoch {snapshot.step.epoch:.2f}")
    parts.append(f"{format_duration(elapsed_seconds(snapshot, now)):>7}")
    left = snapshot.seconds_left
    if snapshot.finished is not None:
        parts.append(f"{'done' if snapshot.progress >= 1 else 'ended':>12}")
    else:
        parts.append(f"{'' if left is None else format_duration(left) + ' left':>12}")
    facts = "  ".join(parts)
    room = max(0, width - len(facts) - 4)
    return exactly([text(" "), *bar(snapshot.progress, room, glyphs), text(f"  {facts} ")], width)


def steps_done(snapshot: Snapshot) -> str:
    """``1,234/2,000``, with the same width at every step."""
    started = snapshot.started
    if started is None or started.steps is None:
        return f"step {snapshot.step_number:,}"
    total = f"{started.steps:,}"
    return f"{snapshot.step_number:>{len(total)},}/{total}"


def elapsed_seconds(snapshot: Snapshot, now: float) -> float:
    """Training time so far; it also advances between two steps."""
    if snapshot.finished is not None:
        return snapshot.finished.elapsed_seconds
    before = 0.0 if snapshot.step is None else snapshot.step.elapsed_seconds
    newest = snapshot.started if snapshot.session_step is None else snapshot.step
    return before + (0.0 if newest is None else max(0.0, now - newest.time))


def curve(snapshot: Snapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The loss over the steps, or a message while there is none."""
    losses = snapshot.losses.buckets
    if losses:
        return chart(losses, snapshot.validations.buckets, width, height, glyphs)
    blank: list[Line] = [[] for _ in range((height - 1) // 2)]
    return [*blank, [text("the curve begins with the first step".center(width), Palette.faint)]]


def training(snapshot: Snapshot, width: int, glyphs: Glyphs) -> list[Line]:
    """Losses, learning rate, speed: one name and one value per line, values in one column."""
    step, validated, best, pace = snapshot.step, snapshot.validated, snapshot.best, snapshot.pace
    flops = snapshot.flops_per_second
    star = text(f" {glyphs.best}", Palette.good) if validated is not None and validated.best else _NO_MARK
    at = "" if best is None else f" at {step_label(best.step)}"
    new_best = validated is not None and validated.best
    return [
        _pair("loss", _loss(step.loss if step else None), width, _loss_style(step.loss if step else 0.0)),
        _pair("smoothed", _loss(snapshot.smoothed.value), width),
        _pair(*_validation(validated), width, _new(new_best), star),
        _pair(f"best{at}", _loss(best.loss if best else None), width, Palette.mark),
        _pair("bits per byte", _bits_per_byte(best), width),
        _perplexity(step, best, width),
        _rates(step, width),
        _pair("gradient norm", significant(step.grad_norm) if step else _UNKNOWN, width),
        _pair("it/s", _or_unknown(pace.steps_per_second, significant), width),
        _pair("tok/s", _or_unknown(pace.tokens_per_second, format_count), width),
        _pair("GFLOP/s", _or_unknown(None if flops is None else flops / 1e9, significant), width),
    ]


def _perplexity(step: StepDone | None, best: Validated | None, width: int) -> Line:
    """The best perplexity; in its place, beside a teacher, how far the model is from it."""
    if step is not None and step.teacher_divergence is not None:
        return _pair("KL to teacher", figure(step.teacher_divergence), width)
    return _pair("perplexity", significant(best.perplexity, 4) if best else _UNKNOWN, width)


def _validation(validated: Validated | None) -> tuple[str, str]:
    """Name and value of the last validation; if the run averages its weights, of both, * the better."""
    if validated is None or validated.trained_loss is None or validated.averaged_loss is None:
        return "validation", _loss(None if validated is None else validated.loss)
    marks = ("", "*") if validated.average_is_better else ("*", "")
    losses = (figure(validated.trained_loss), figure(validated.averaged_loss))
    return "val, avg", "  ".join(f"{mark}{loss}" for mark, loss in zip(marks, losses, strict=True))


def _rates(step: StepDone | None, width: int) -> Line:
    """AdamW's learning rate, and beside it Muon's if Muon updates the matrices."""
    if step is None or step.muon_lr is None:
        return _pair("learning rate", f"{step.lr:.2e}" if step else _UNKNOWN, width)
    return _pair("lr, muon", f"{step.lr:.1e}  {step.muon_lr:.1e}", width)


def machine(snapshot: Snapshot, width: int, now: float, glyphs: Glyphs) -> list[Line]:
    """Processor, memory with a bar, and the age of the last checkpoint."""
    state, saved = snapshot.machine, snapshot.checkpoint
    lines: list[Line] = []
    if state is None:
        lines += [_pair("cpu", _UNKNOWN, width), _pair("memory", _UNKNOWN, width), [], []]
    else:
        cpu = f"{state.cpu_percent:3.0f}%  this run {state.process_cpu_percent:3.0f}%"
        clock = "" if state.cpu_mhz is None else f"{state.cpu_mhz / 1000:.2f} GHz"
        heat = "" if state.cpu_temperature is None else f"{state.cpu_temperature:.0f} {glyphs.degree}C"
        used, total = state.memory_used_bytes, state.memory_total_bytes
        share = used / total if total > 0 else 0.0
        style = Palette.bad if share > 0.95 else Palette.warning if share > 0.85 else Palette.bar
        figures = f" {_short_bytes(used)}/{_short_bytes(total)} GiB"
        lines += [
            _pair("cpu", cpu, width),
            _pair("clock", "  ".join(part for part in (clock, heat) if part) or _UNKNOWN, width),
            _pair("memory", f"this run {format_bytes(state.process_bytes)}", width),
            [text(" "), *gauge(share, max(0, width - 2 - len(figures)), glyphs, style), text(figures)],
        ]
    if saved is None:
        lines.append(_pair("checkpoint", "none yet", width, Palette.label))
    else:
        age = format_duration(max(0.0, now - saved.time))
        lines.append(_pair(f"saved at {step_label(saved.step)}", f"{age} ago", width))
    return lines


def _short_bytes(count: float) -> str:
    gib = count / 2**30
    return f"{gib:.1f}" if gib < 100 else f"{gib:.0f}"


def sample(snapshot: Snapshot, width: int, height: int) -> list[Line]:
    """The newest sample, its prompt highlighted, wrapped and cut to fit."""
    made = snapshot.sample
    if made is None:
        started = snapshot.started
        writes = started is None or started.writes_samples
        said = " written at each validation" if writes else " none in this run"
        return [[text(said[:width], Palette.faint)]]
    prompt = harmless(made.prompt, keep_lines=True)
    body = harmless(made.text, keep_lines=True)
    lines: list[Line] = []
    left = prompt
    for line in fold(prompt + body, width - 2, height):
        head = _common_start(line, left)
        left = left[len(head) :]
        if head == line:  # wrapping dropped the blank at the line's end
            left = left.lstrip(" ").removeprefix("\n")
        lines.append([text(" "), text(head, Palette.mark), text(line[len(head) :])])
    return lines


def _common_start(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def notices(snapshot: Snapshot, width: int, height: int) -> list[Line]:
    """The newest notices that fit, oldest first, each folded to the width."""
    lines: list[Line] = []
    for notice in reversed(snapshot.notices):
        style = Palette.warning if notice.level == "warning" else Palette.label
        words = fold_words(harmless(notice.message), width - 2)
        if len(lines) + len(words) > height:
            break
        lines = [[text(f" {line}", style)] for line in words] + lines
    return lines


def fold_words(message: str, width: int) -> list[str]:
    """Lines of at most ``width`` cells, broken between words; longer words are cut."""
    lines: list[str] = []
    current = ""
    for word in message.split():
        longer = f"{current} {word}" if current else word
        if len(fold(longer, width, 2)) == 1:
            current = longer
            continue
        if current:
            lines.append(current)
        current = fit(word, width).rstrip() if len(word) > width else word
    return [*lines, current] if current else lines


def footer(snapshot: Snapshot, width: int, now: float, glyphs: Glyphs, *, news: bool = True) -> Line:
    """One line: the end of the run, else the current stage, else the hint on Ctrl-C.

    With ``news`` the newest warning stands before a short hint, or for :data:`_NEWS_SECONDS` the newest other
    notice: neither hides the hint, nor a notice a warning.
    """
    if snapshot.finished is not None:
        reason = END_REASONS[snapshot.finished.reason]
        return exactly([text(f" {reason}", Palette.good)], width)
    if snapshot.stage is not None:
        return stage_bar(snapshot.stage, width, now, glyphs)
    notice = _news(snapshot, now) if news else None
    if notice is not None:
        style = Palette.warning if notice.level == "warning" else Palette.label
        has_hint = not snapshot.way_out and width >= _HINT_BESIDE_NEWS
        hint = "  Ctrl-C saves and stops " if has_hint and not notice.message.startswith(STOPPING) else ""
        said = fit(f" {harmless(notice.message)}", width - len(hint), ellipsis=glyphs.ellipsis)
        return [text(said, style), text(hint, Palette.faint)]
    run = snapshot.started.run if snapshot.started is not None else "RUN"
    way_out = snapshot.way_out or f"Ctrl-C saves and stops; `cpulm resume {typed(run)}` continues it"
    return [text(fit(f" {harmless(way_out)}", width, ellipsis=glyphs.ellipsis), Palette.faint)]


def _news(snapshot: Snapshot, now: float) -> Notice | None:
    """The newest warning, or else the newest notice if it is new."""
    for notice in reversed(snapshot.notices):
        if notice.level == "warning":
            return notice
    newest = snapshot.notices[-1] if snapshot.notices else None
    return newest if newest is not None and now - newest.time < _NEWS_SECONDS else None


def stage_bar(stage: StageProgress, width: int, now: float, glyphs: Glyphs) -> Line:
    """``tokenizing ━━━━━━━━━╸────── 34%  4.2 MiB/s  12s left`` in exactly ``width`` cells."""
    last = stage.last
    name: Line = [text(f" {_stage_name(last.stage, width, glyphs)} ", Palette.title)]
    speed = "" if stage.per_second is None else rate(stage.per_second, last.unit)
    left = "" if stage.seconds_left is None else f"{format_duration(stage.seconds_left)} left"
    if stage.fraction is None:
        took = format_duration(max(0.0, now - stage.first.time))
        done = f"{amount(last.done, last.unit)}  {speed}  " if last.done and last.unit else ""
        return exactly([*name, text(done), text(f"working for {took}", Palette.label)], width)
    facts = f" {stage.fraction:4.0%} {left:>12} "
    if width >= 60:
        facts = f" {stage.fraction:4.0%}  {fit(speed, 16)} {left:>12} "
    room = max(0, width - line_cells(name) - len(facts))
    return exactly([*name, *bar(stage.fraction, room, glyphs), text(facts)], width)


def _stage_name(name: str, width: int, glyphs: Glyphs) -> str:
    """A stage's name as one column; the longest of cpulm's fits into 80 cells."""
    return fit(harmless(name), 18 if width < 78 else 30, ellipsis=glyphs.ellipsis)


def stage_done(stage: StageProgress, width: int, glyphs: Glyphs) -> Line:
    """A finished stage: what it did and how long it took."""
    name = _stage_name(stage.last.stage, width, glyphs)
    what = amount(stage.last.done, stage.last.unit) if stage.last.unit else ""
    facts = f"{fit(what, 18)} {format_duration(stage.seconds):>8}"
    done = text(f" {glyphs.done} ", Palette.good)
    return exactly([done, text(f"{name} "), text(facts, Palette.label)], width)


def _pair(name: str, value: str, width: int, style: Style = Palette.value, mark: Segment = _NO_MARK) -> Line:
    """A name at the left, a value that ends two cells before the right border, where ``mark`` stands."""
    return apart([text(f" {name}", Palette.label)], [text(value, style), mark], width)


def _loss(value: float | None) -> str:
    return _UNKNOWN if value is None else figure(value)


def _bits_per_byte(best: Validated | None) -> str:
    if best is not None and best.text_lost:
        return "not comparable"
    return _loss(None if best is None else best.bits_per_byte)


def _loss_style(loss: float) -> Style:
    return Palette.value if math.isfinite(loss) else Palette.bad


def _new(best: bool) -> Style:
    return Palette.good if best else Palette.value


def _or_unknown(value: float | None, form: Callable[[float], str]) -> str:
    return _UNKNOWN if value is None else form(value)
