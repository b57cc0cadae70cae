"""What happened in the night, on one page: ``summary.md`` in a run's folder.

Made from ``metrics.jsonl`` and, where there was a supervisor, ``overnight.json`` alone: no checkpoint is
opened. Damaged lines and files cost what stood in them and no more.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from typing import Any

from cpulm.atomic import write_text
from cpulm.exit_codes import exit_in_words
from cpulm.overnight.summary_record import NightLog, read_record
from cpulm.run_dir import RunDir
from cpulm.runs import supervisor_state
from cpulm.runs.supervisor_state import ENDED, FAILED, FINISHED, INTERRUPTED, Attempt, SupervisorState
from cpulm.units import format_count, format_duration

_MOST_LINES = 24
_SAMPLE_LINES = 12
_WIDTH = 100

_REASONS = {
    "horizon": "it reached its horizon",
    "target_loss": "it reached its target loss",
    "patience": "the validation loss had stopped falling",
    "stopped": "it was stopped, with everything saved",
    "diverged": "training diverged",
    "no_room": "there was no room for a checkpoint",
    "failed": "it failed",
}
_STATES = {
    supervisor_state.TRAINING: "Training goes on.",
    supervisor_state.WAITING: "It waits before the next start.",
    supervisor_state.INTERRUPTED: "Interrupted: the computer, or the process that watched it, was shut down.",
    supervisor_state.STOPPED: "Stopped on purpose.",
    supervisor_state.FAILED: "Ended: starting it again would not help.",
    supervisor_state.GIVEN_UP: "Given up: start after start brought nothing. See overnight.log.",
}


def write_summary(run: RunDir) -> str:
    """Make the page anew and write it to ``summary.md``.

    Raises:
        ResourceError: where the disk is full.
        OSError: where the folder cannot be written.
    """
    text = summary(run)
    write_text(run.path / "summary.md", text)
    return text


def summary(run: RunDir) -> str:
    """The page, in Markdown that reads well in a terminal."""
    night = supervisor_state.read(run)
    record = read_record(run.metrics, night.since if night else None)
    lines = [f"# {run.path}", "", _state(run, night, record), ""]
    lines += [f"- {name + ':':<12}{text}" for name, text in _facts(run, night, record)]
    happened = _happened(night, record)
    if happened:
        lines += ["", "## What happened", "", *[f"- {_clock(when)}  {text}" for when, text in happened]]
    if record.sample:
        lines += ["", f"## What it wrote at step {record.sample['step']:,}", "", *_sample(record.sample)]
    lines += ["", "## What to do with it", "", *_commands(run, night, record)]
    return "\n".join(lines) + "\n"


def _state(run: RunDir, night: SupervisorState | None, record: NightLog) -> str:
    """One sentence on how it stands."""
    reason = record.finished["reason"] if record.finished else None
    why = _REASONS.get(str(reason), str(reason))
    if night is None:
        return f"The run has ended: {why}." if reason else "The run has not ended, or its process vanished."
    if night.state == FINISHED and reason:
        return f"Finished: {why}."
    if night.state == FAILED and night.parts:
        last = night.parts[-1]
        return f"Ended: {last.said or exit_in_words(last.code)}. Starting it again would not help."
    saved = supervisor_state.checkpoint_step(run)
    words = _STATES.get(night.state, night.state)
    return (
        words
        if night.state == supervisor_state.TRAINING or saved is None
        else f"{words} Saved up to step {saved:,}."
    )


def _facts(run: RunDir, night: SupervisorState | None, record: NightLog) -> list[tuple[str, str]]:
    facts = [("how long", _how_long(night, record)), ("how far", _how_far(record))]
    best = record.best
    if best:
        facts.append(
            (
                "best loss",
                f"{float(best['loss']):.4f} ({float(best['bits_per_byte']):.4f} bits per byte) "
                f"at step {best['step']:,}, {_clock(best['time'])}",
            )
        )
    for path, what in ((run.best, "best model"), (run.latest, "newest")):
        if path.is_file():
            facts.append((what, str(path)))
    return [(name, text) for name, text in facts if text]


def _how_long(night: SupervisorState | None, record: NightLog) -> str:
    first, last = record.first_step, record.step
    if night is None:
        return f"{format_duration(last['elapsed_seconds'])} trained" if last else "no step yet"
    end = night.parts[-1].ended if night.parts and night.parts[-1].ended else time.time()
    whole = max(0.0, end - night.since)
    begin, until = _clock(night.since), _clock(end)
    day = begin.rpartition(" ")[0]
    text = f"{format_duration(whole)}, from {begin} to {until.removeprefix(day).strip()}"
    if first is None or last is None:
        return text
    trained = last["elapsed_seconds"] - first["elapsed_seconds"] + first["step_seconds"]
    trained = min(max(trained, 0.0), whole)
    restarts = len(night.parts) - 1 + night.before
    lost = f", {restarts} restart{'s' * (restarts != 1)} and pauses" if restarts else ""
    rest = format_duration(whole - trained)
    return f"{text}: {format_duration(trained)} trained, {rest} went into getting ready{lost}"


def _how_far(record: NightLog) -> str:
    step, started = record.step, record.started
    if step is None:
        return "not one step yet"
    if started is None:
        return f"step {step['step']:,}"
    tokens = f"{format_count(step['step'] * int(started['tokens_per_step']))} tokens"
    if started.get("steps"):
        steps = int(started["steps"])
        return f"step {step['step']:,} of {steps:,} ({step['step'] / steps:.0%}), {tokens}"
    return f"step {step['step']:,}, {float(step['progress']):.0%} of the time it was given, {tokens}"


def _happened(night: SupervisorState | None, record: NightLog) -> list[tuple[float, str]]:
    """Starts, ends and what was worth telling between them, in order; the middle goes where it is much."""
    told = _merged(record.told)
    if night is not None:
        for at, part in enumerate(night.parts):
            previous = night.parts[at - 1] if at else None
            told.append((part.began, _beginning(part, previous)))
            if at == 0 and night.before:
                told.append((part.began, f"{night.before} restarts that are not listed"))
            if part.ended is not None:
                where = f" at step {part.step:,}" if part.step is not None else ""
                said = f": {part.said}" if part.said else ""
                told.append((part.ended, f"{exit_in_words(part.code)}{where}{said}"))
    told.sort(key=lambda pair: pair[0])
    excess = len(told) - _MOST_LINES
    if excess > 0:
        head = _MOST_LINES // 3
        left_out = (told[head][0], f"... {excess + 1} more lines; all of it is in overnight.log")
        told[head : head + excess + 1] = [left_out]
    return told


def _beginning(part: Attempt, previous: Attempt | None) -> str:
    step = part.from_step
    if previous is None:
        return f"started from step {step:,}" if step else "started"
    text = "started again" + (f" from step {step:,}" if step is not None else " from the beginning")
    if previous.pause_seconds is not None:
        text += f", after {format_duration(max(0.0, part.began - (previous.ended or part.began)))}"
    lost = (previous.step or 0) - (step or 0)
    return f"{text}; {lost:,} step{'s' * (lost != 1)} to train once more" if lost > 0 else text


def _merged(told: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The same words many times over become one line that counts them."""
    times: dict[str, list[float]] = {}
    for when, text in told:
        times.setdefault(" ".join(text.split()), []).append(when)
    return [
        (at[0], text if len(at) == 1 else f"{text} ({len(at)} times, the last at {_clock(at[-1])})")
        for text, at in times.items()
    ]


def _sample(event: dict[str, Any]) -> list[str]:
    """The text as an indented block, which Markdown leaves as it is."""
    text = f"{event.get('prompt', '')}{event.get('text', '')}"
    clean = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    lines = [line[at : at + _WIDTH] for line in clean.splitlines() for at in range(0, len(line) or 1, _WIDTH)]
    return [f"    {line}".rstrip() for line in lines[:_SAMPLE_LINES]]


def _commands(run: RunDir, night: SupervisorState | None, record: NightLog) -> list[str]:
    place = _quoted(str(run.path))
    model = _quoted(str(run.best if run.best.is_file() else run.latest))
    reason = record.finished["reason"] if record.finished else None
    ended = night.state in ENDED if night else reason is not None
    commands = []
    if run.best.is_file() or run.latest.is_file():
        commands.append((f"cpulm generate --checkpoint {model}", "let it write"))
    if not ended:
        commands += [(f"cpulm watch {place}", "look at it"), (f"cpulm stop {place}", "save and stop")]
    if reason == "horizon" and record.step:
        commands.append((f"cpulm resume {place} --steps {2 * record.step['step']}", "train it further"))
    elif ended or (night and night.state == INTERRUPTED):
        commands.append((f"cpulm resume {place}{' --overnight' if night else ''}", "go on"))
    width = max((len(command) for command, _ in commands), default=0)
    return [f"    {command:<{width}}  # {what}" for command, what in commands]


def _quoted(path: str) -> str:
    return subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(path)


def _clock(when: float) -> str:
    return time.strftime("%a %d %b %H:%M", time.localtime(float(when)))
