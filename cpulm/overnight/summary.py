"""Writes one page on what happened in a run: ``summary.md`` in its folder.

Its only sources are ``metrics.jsonl`` and, if there was a supervisor, ``overnight.json``: no checkpoint is
opened. Damaged lines and files are ignored.
"""

from __future__ import annotations

import time

from cpulm.atomic import write_text
from cpulm.command import typed
from cpulm.events import END_REASONS, SampleMade
from cpulm.exit_codes import exit_in_words
from cpulm.overnight.summary_record import NightLog, read_night_log
from cpulm.run_dir import RunDir
from cpulm.runs import supervisor_state
from cpulm.runs.supervisor_state import ENDED, NIGHT_STATES, Attempt, SupervisorState
from cpulm.units import format_bits_per_byte, format_count, format_duration

_MOST_LINES = 24
_SAMPLE_LINES = 12
_WIDTH = 100


def write_summary(run: RunDir) -> str:
    """Write the page to ``summary.md``, and return it.

    Raises:
        ResourceError: the disk is full.
        OSError: the folder cannot be written.
    """
    text = summary(run)
    write_text(run.summary, text)
    return text


def summary(run: RunDir) -> str:
    """The page, in Markdown that is readable in a terminal."""
    night = supervisor_state.read(run)
    record = read_night_log(run.metrics, night.since if night else None)
    lines = [f"# {run.path}", "", _state(run, night, record), ""]
    lines += [f"- {name + ':':<12}{text}" for name, text in _facts(run, night, record)]
    happened = _happened(night, record)
    if happened:
        lines += ["", "## What happened", "", *[f"- {_clock(when)}  {text}" for when, text in happened]]
    if record.sample:
        lines += ["", f"## Sample at step {record.sample.step:,}", "", *_sample(record.sample)]
    lines += ["", "## Next commands", "", *_commands(run, night, record)]
    return "\n".join(lines) + "\n"


def _state(run: RunDir, night: SupervisorState | None, record: NightLog) -> str:
    """The state of the run in one sentence."""
    reason = record.finished.reason if record.finished else None
    ended = (
        f"The run {END_REASONS[reason]}."
        if reason
        else "The run has not ended, or its process ended unexpectedly."
    )
    if night is None:
        return ended
    if night.state == "finished" and reason:
        return ended
    if night.state == "failed" and night.attempts:
        last = night.attempts[-1]
        return f"Ended: {last.error or exit_in_words(last.code)}. Another start would fail in the same way."
    saved = supervisor_state.checkpoint_step(run)
    words = NIGHT_STATES[night.state]
    return words if night.state == "training" or saved is None else f"{words} Saved up to step {saved:,}."


def _facts(run: RunDir, night: SupervisorState | None, record: NightLog) -> list[tuple[str, str]]:
    facts = [("how long", _how_long(night, record)), ("how far", _how_far(record))]
    best = record.best
    if best:
        facts.append(
            (
                "best loss",
                f"{best.loss:.4f} ({format_bits_per_byte(best.bits_per_byte, best.text_lost)}) "
                f"at step {best.step:,}, {_clock(best.time)}",
            )
        )
    for path, what in ((run.best, "best model"), (run.latest, "newest")):
        if path.is_file():
            facts.append((what, str(path)))
    return [(name, text) for name, text in facts if text]


def _how_long(night: SupervisorState | None, record: NightLog) -> str:
    first, last = record.first_step, record.step
    if night is None:
        return f"{format_duration(last.elapsed_seconds)} trained" if last else "no step trained yet"
    end = night.attempts[-1].ended if night.attempts and night.attempts[-1].ended else time.time()
    whole = max(0.0, end - night.since)
    begin, until = _clock(night.since), _clock(end)
    day = begin.rpartition(" ")[0]
    text = f"{format_duration(whole)}, from {begin} to {until.removeprefix(day).strip()}"
    if first is None or last is None:
        return text
    trained = last.elapsed_seconds - first.elapsed_seconds + first.step_seconds
    trained = min(max(trained, 0.0), whole)
    restarts = len(night.attempts) - 1 + night.attempts_dropped
    lost = f", {restarts} restart{'s' * (restarts != 1)} and pauses" if restarts else ""
    rest = format_duration(whole - trained)
    return f"{text}: {format_duration(trained)} trained, {rest} for preparation{lost}"


def _how_far(record: NightLog) -> str:
    step, started = record.step, record.started
    if step is None:
        return "no step trained yet"
    if started is None:
        return f"step {step.step:,}"
    tokens = f"{format_count(step.step * started.tokens_per_step)} tokens"
    if started.steps:
        return f"step {step.step:,} of {started.steps:,} ({step.step / started.steps:.0%}), {tokens}"
    return f"step {step.step:,}, {step.progress:.0%} of the given time, {tokens}"


def _happened(night: SupervisorState | None, record: NightLog) -> list[tuple[float, str]]:
    """Starts, ends and notable events, by time; if there are very many, the middle ones are left out."""
    told = _merged(record.notes)
    if night is not None:
        for at, attempt in enumerate(night.attempts):
            previous = night.attempts[at - 1] if at else None
            told.append((attempt.began, _beginning(attempt, previous)))
            if at == 0 and night.attempts_dropped:
                told.append((attempt.began, f"{night.attempts_dropped} earlier restarts are not listed"))
            if attempt.ended is not None:
                where = f" at step {attempt.step:,}" if attempt.step is not None else ""
                said = f": {attempt.error}" if attempt.error else ""
                told.append((attempt.ended, f"{exit_in_words(attempt.code)}{where}{said}"))
    told.sort(key=lambda pair: pair[0])
    excess = len(told) - _MOST_LINES
    if excess > 0:
        head = _MOST_LINES // 3
        left_out = (told[head][0], f"... {excess + 1} more lines, see overnight.log")
        told[head : head + excess + 1] = [left_out]
    return told


def _beginning(attempt: Attempt, previous: Attempt | None) -> str:
    step = attempt.from_step
    if previous is None:
        return f"started from step {step:,}" if step else "started"
    text = "started again" + (f" from step {step:,}" if step is not None else " from the beginning")
    if previous.pause_seconds is not None:
        text += f", after {format_duration(max(0.0, attempt.began - (previous.ended or attempt.began)))}"
    lost = (previous.step or 0) - (step or 0)
    return f"{text}; {lost:,} step{'s' * (lost != 1)} to train again" if lost > 0 else text


def _merged(told: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Merge events with the same words into one line that counts them."""
    times: dict[str, list[float]] = {}
    for when, text in told:
        times.setdefault(" ".join(text.split()), []).append(when)
    return [
        (at[0], text if len(at) == 1 else f"{text} ({len(at)} times, the last at {_clock(at[-1])})")
        for text, at in times.items()
    ]


def _sample(event: SampleMade) -> list[str]:
    """The text as an indented block, which Markdown leaves as it is."""
    text = event.prompt + event.text
    clean = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    lines = [line[at : at + _WIDTH] for line in clean.splitlines() for at in range(0, len(line) or 1, _WIDTH)]
    return [f"    {line}".rstrip() for line in lines[:_SAMPLE_LINES]]


def _commands(run: RunDir, night: SupervisorState | None, record: NightLog) -> list[str]:
    place = typed(run.path)
    model = typed(run.best if run.best.is_file() else run.latest)
    reason = record.finished.reason if record.finished else None
    ended = night.state in ENDED if night else reason is not None
    commands = []
    if run.best.is_file() or run.latest.is_file():
        commands.append((f"cpulm generate {model}", "generate text"))
    if not ended:
        commands += [(f"cpulm watch {place}", "watch it"), (f"cpulm stop {place}", "save and stop")]
    if reason == "horizon" and record.step and not record.risen:
        commands.append((f"cpulm resume {place} --steps {2 * record.step.step}", "train it further"))
    elif (ended and reason != "horizon") or (night and night.state == "interrupted"):
        commands.append((f"cpulm resume {place}{' --overnight' if night else ''}", "continue it"))
    width = max((len(command) for command, _ in commands), default=0)
    return [f"    {command:<{width}}  # {what}" for command, what in commands]


def _clock(when: float) -> str:
    return time.strftime("%a %d %b %H:%M", time.localtime(float(when)))
