"""What ``metrics.jsonl`` tells of a run for its summary, read in one pass without keeping the steps."""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpulm.events import is_sound

_LAST_STEPS = 8
"""So many lines are kept, for the last ones may be damaged."""
_SLACK_SECONDS = 1.0
"""A restart's first events may bear a time a moment before the supervisor's."""


@dataclass
class NightLog:
    """What ``metrics.jsonl`` says, without the steps: only the night's first and the last one are kept."""

    started: dict[str, Any] | None = None
    first_step: dict[str, Any] | None = None
    step: dict[str, Any] | None = None
    validations: list[dict[str, Any]] = field(default_factory=list)
    sample: dict[str, Any] | None = None
    finished: dict[str, Any] | None = None
    told: list[tuple[float, str]] = field(default_factory=list)

    @property
    def best(self) -> dict[str, Any] | None:
        """The validation with the lowest loss."""
        finite = [v for v in self.validations if math.isfinite(float(v["loss"]))]
        return min(finite, key=lambda v: float(v["loss"]), default=None)


def read_record(metrics: Path, since: float | None = None) -> NightLog:
    """Read the record of a run.

    Args:
        since: when the night began; what was told before is left out. None for the whole run.
    """
    record = NightLog()
    last: deque[bytes] = deque(maxlen=_LAST_STEPS)
    try:
        with metrics.open("rb") as file:
            for line in file:
                # A night has millions of steps: only the first and the last one are worth parsing.
                if line.startswith(b'{"event":"step"'):
                    if not line.endswith(b"}\n"):
                        continue
                    last.append(line)
                    if record.first_step is None and (since is None or _time_of(line) >= since):
                        record.first_step = _step(line)
                elif not line.startswith(b'{"event":"machine"'):
                    event = _parsed(line)
                    if event and event["event"] == "rolled_back":
                        record.step = _back(_newest(last) or record.step, event)
                        last.clear()
                    if event:
                        _note(record, event, since or 0.0)
    except OSError:
        return record
    record.step = _newest(last) or record.step
    return record


def _note(record: NightLog, event: dict[str, Any], since: float) -> None:
    kind, when = event["event"], float(event["time"])
    try:
        if kind == "run_started" and "tokens_per_step" in event:
            record.started, record.finished = event, None
        elif kind == "validated":
            float(event["loss"]), float(event["bits_per_byte"]), event["step"]
            record.validations.append(event)
        elif kind == "sample" and "step" in event:
            record.sample = event
        elif kind == "run_finished" and "reason" in event:
            record.finished = event
        elif kind == "rolled_back":
            to_step = int(event["to_step"])
            record.validations = [v for v in record.validations if v["step"] <= to_step]
            told = f"rolled back from step {event['step']:,} to step {to_step:,}: {event['reason']}"
            if when >= since:
                record.told.append((when, told))
        elif kind == "notice" and when >= since - _SLACK_SECONDS and _is_worth_telling(event, record):
            record.told.append((when, str(event["message"])))
    except (KeyError, TypeError, ValueError):
        return  # an event of another version, or half of one


def _is_worth_telling(event: dict[str, Any], record: NightLog) -> bool:
    """Warnings always; other notices unless they belong to the usual words before a run's first step."""
    if event.get("level") == "warning":
        return True
    return (
        record.started is not None and float(event["time"]) - float(record.started["time"]) > _SLACK_SECONDS
    )


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if is_sound(event) else None


def _newest(lines: deque[bytes]) -> dict[str, Any] | None:
    """The last of the steps that is whole."""
    return next((step for line in reversed(lines) if (step := _step(line))), None)


def _step(line: bytes) -> dict[str, Any] | None:
    event = _parsed(line)
    whole = event and {"step", "tokens", "elapsed_seconds", "step_seconds", "progress"} <= event.keys()
    return event if whole else None


def _back(step: dict[str, Any] | None, event: dict[str, Any]) -> dict[str, Any] | None:
    """The last step as it counts after a roll-back: the time is gone all the same."""
    to_step = event.get("to_step")
    return {**step, "step": to_step} if step and isinstance(to_step, int) else step


def _time_of(line: bytes) -> float:
    """The time in a line as ``to_json`` writes it, without parsing the rest."""
    _, _, after = line.partition(b'"time":')
    try:
        return float(after.partition(b",")[0])
    except ValueError:
        return -math.inf
