"""Says how good a run's loss is beside what its size, its text and its time reach by the measured law."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cpulm.analysis.report import Figures, Finding, Standing
from cpulm.estimate.learning_law import TextCurve, measured_law
from cpulm.runlog.run_log import RunLog
from cpulm.units import format_duration

_HOUR = 3600.0
_FURTHEST = 6.0
"""Multiple of the run's time up to which more time is spoken of."""
_SMALL_GAIN = 0.005
_STEEPEST = 1.0
"""No text has such a slope: the log is damaged."""
_ENDS = ("horizon", "patience", "target_loss")


def standing(log: RunLog, figures: Figures) -> Standing | None:
    """Compare the run with the law; None if it has not ended, or too little is known of its text."""
    loss, tokens = figures.best_bits_per_byte, figures.tokens
    level, slope = figures.text_level, figures.text_slope
    if log.finished is None or log.finished.reason not in _ENDS or not loss or not tokens:
        return None
    if not level or level < 0 or slope is None or abs(slope) > _STEEPEST or figures.text_lost:
        return None
    if not figures.best_loss or not figures.train_tokens or not figures.seconds:
        return None
    params, bytes_per_token = figures.params_non_embedding or 1, figures.best_loss / math.log(2) / loss
    unique, law = figures.train_tokens * bytes_per_token, measured_law()
    more = min(_HOUR, _FURTHEST * figures.seconds)
    now, then = (
        law.expected(params, tokens * times * bytes_per_token, unique, TextCurve(level, slope))
        for times in (1.0, 1.0 + more / figures.seconds)
    )
    return Standing(loss, now, more, loss * then.loss / now.loss)


def standing_findings(found: Standing | None, seconds: float) -> Iterator[Finding]:
    """Whether the loss is normal, in words."""
    if found is None:
        return
    usual = found.expected
    span = f"{usual.loss:.2f} ({usual.low:.2f} to {usual.high:.2f})"
    text = (
        f"{found.loss:.2f} bits per byte; a model of this size usually makes {span} of such a text in "
        f"{format_duration(seconds)} at this speed"
    )
    longer = "hour" if found.more_seconds == _HOUR else format_duration(found.more_seconds)
    gain = found.loss - found.loss_then
    if gain > _SMALL_GAIN * found.loss:
        then = f"Another {longer} would bring about {found.loss_then:.2f}."
    else:
        then = "More time would bring little with this text and size: more text would help."
    numbers = {
        "bits_per_byte": found.loss,
        "expected": usual.loss,
        "expected_low": usual.low,
        "expected_high": usual.high,
        "more_seconds": found.more_seconds,
        "bits_per_byte_then": found.loss_then,
    }
    if found.loss > usual.high:
        hint = "Try `cpulm train --max-time`, which plans the settings, or a more uniform text."
        yield Finding("standing", "note", f"Worse than usual: {text}. {hint}", numbers)
    else:
        how = "Better than usual" if found.loss < usual.low else "Normal"
        yield Finding("standing", "good", f"{how}: {text}. {then}", numbers)
