"""Where the trials of a sweep stand, read from their runs' records as they grow."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpulm.events import COMPLETE, is_sound
from cpulm.run_dir import RunDir
from cpulm.sweep.plan import Trial

WAITING, RUNNING, PAUSED, FINISHED, LOST, FAILED, LEFT_OUT = (
    "waiting",
    "running",
    "paused",
    "finished",
    "diverged",
    "failed",
    "stopped early",
)
_BLOCK_BYTES = 1 << 24


@dataclass
class TrialLog:
    """The record of one trial, followed from where it was read last.

    ``scores`` are bits per byte by the step of their validation, ``losses`` nats per token.
    """

    run: RunDir
    scores: dict[int, float] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    step: int = 0
    tokens: int = 0
    elapsed_seconds: float = 0.0
    reason: str | None = None
    _read: int = 0
    _file: int | None = None

    def follow(self) -> None:
        """Read what has been written since."""
        try:
            with self.run.metrics.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._file or stat.st_size < self._read:
                    self._forget()  # a resumed run has replaced the record by its first part
                    self._file = stat.st_ino
                more = True
                while more:
                    file.seek(self._read)
                    more = self._take(file.read(_BLOCK_BYTES))
        except OSError:
            return

    def best_until(self, step: int | None) -> float:
        """The best bits per byte among validations up to ``step``; infinite where there is none."""
        scores = (score for at, score in self.scores.items() if step is None or at <= step)
        return min((score for score in scores if math.isfinite(score)), default=math.inf)

    def has_ended(self) -> bool:
        """Whether its last word is that it has reached its end."""
        return self.reason in COMPLETE

    def has_diverged(self) -> bool:
        return self.reason == "diverged"

    def has_reached(self, step: int | None) -> bool:
        """Whether it is validated at ``step``, or has ended; None stands for its end."""
        return self.has_ended() or (step is not None and any(at >= step for at in self.scores))

    def _forget(self) -> None:
        self.scores.clear()
        self.losses.clear()
        self.step, self.tokens, self.elapsed_seconds, self.reason, self._read = 0, 0, 0.0, None, 0

    def _take(self, content: bytes) -> bool:
        """Note what whole lines tell; whether there may be more behind them."""
        whole = content.rfind(b"\n") + 1
        self._read += whole
        step: bytes | None = None
        for line in content[:whole].splitlines():
            if line.startswith(b'{"event":"step"'):
                step = line  # the newest one tells all; a night has a million
                self.reason = None
            elif line.startswith(
                (b'{"event":"validated"', b'{"event":"run_finished"', b'{"event":"run_started"')
            ):
                self._note(line)
        if step is not None:
            self._note(step)
        return len(content) == _BLOCK_BYTES and whole > 0

    def _note(self, line: bytes) -> None:
        record = _record(line)
        if record is None:
            return
        kind = record["event"]
        if kind == "validated" and {"step", "bits_per_byte", "loss"} <= record.keys():
            self.scores[record["step"]] = float(record["bits_per_byte"])
            self.losses[record["step"]] = float(record["loss"])
        elif kind == "run_started":
            self.reason = None
        elif kind == "run_finished":
            self.reason = str(record.get("reason"))
        if kind in ("step", "run_finished"):
            self.step = record.get("step", self.step)
            self.tokens = record.get("tokens", self.tokens)
            self.elapsed_seconds = record.get("elapsed_seconds", self.elapsed_seconds)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if is_sound(record) else None


@dataclass(frozen=True)
class TrialStanding:
    """Where a trial stands.

    ``state`` is one of this module's; ``bits_per_byte`` is the best so far, ``rung`` how many rungs it has
    passed; ``said`` is what a failed process said last.
    """

    name: str
    run: Path
    state: str
    step: int
    steps: int | None
    tokens: int
    seconds: float
    bits_per_byte: float | None
    loss: float | None
    rung: int
    said: str = ""


def standing(trial: Trial, progress: TrialLog, state: str, rung: int, said: str = "") -> TrialStanding:
    """How a trial stands, in figures."""
    best = progress.best_until(None)
    at = next((step for step, score in progress.scores.items() if score == best), None)
    return TrialStanding(
        name=trial.name,
        run=progress.run.path,
        state=state,
        step=progress.step,
        steps=trial.steps,
        tokens=progress.tokens,
        seconds=progress.elapsed_seconds,
        bits_per_byte=best if math.isfinite(best) else None,
        loss=None if at is None else progress.losses[at],
        rung=rung,
        said=said,
    )
