"""Detects periods in which the machine was slower than usual, and their reason if the log shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cpulm.analysis.report import Finding, Floats
from cpulm.runlog.run_log import Booleans, RunLog

_WINDOWS = 60
_FEWEST_WINDOWS, _FEWEST_STEPS = 6, 8
_SLOW = 1.25
"""Multiple of the usual duration of a step."""
_USUAL_QUANTILE = 0.2
"""Quantile of the windows' durations that is usual: a machine may be slow for most of a run."""
_LEAST_PART, _LEAST_SECONDS = 0.1, 30.0
_OTHERS_PERCENT = 8.0
_CLOCK_LOSS = 0.08
_HOT_C = 85.0


@dataclass(frozen=True)
class Stretch:
    """The longest period of slow steps: wall-clock times, and a step's duration in it and usually."""

    began: float
    ended: float
    to_the_end: bool
    step_seconds: float
    usual_seconds: float


def slowdown(log: RunLog) -> Finding | None:
    """Return the finding if a tenth of the steps or more were slow; else None."""
    stretch = _slow_stretch(log)
    if stretch is None:
        return None
    times = stretch.step_seconds / stretch.usual_seconds
    begin = time.strftime("%H:%M", time.localtime(stretch.began))
    end = time.strftime("%H:%M", time.localtime(stretch.ended))
    when = f"from {begin}" if stretch.to_the_end else f"from {begin} to {end}"
    kind, why, figures = _reason(log, stretch)
    figures.update(
        since=stretch.began,
        until=stretch.ended,
        step_seconds=stretch.step_seconds,
        usual_step_seconds=stretch.usual_seconds,
        slower_times=times,
    )
    head = "The machine throttled" if kind == "throttled" else "The machine was slower"
    text = f"{head} {when}: a step took {times:.2f} times as long as usual{why}."
    return Finding(kind, "warning", text, figures)


def _slow_stretch(log: RunLog) -> Stretch | None:
    seconds, moments = log.steps["step_seconds"], log.steps["time"]
    windows = min(_WINDOWS, len(seconds) // _FEWEST_STEPS)
    if windows < _FEWEST_WINDOWS:
        return None
    length = len(seconds) // windows
    # The remainder is dropped at the beginning, which includes compilation and cold caches.
    skipped = len(seconds) - windows * length
    medians = np.median(np.nan_to_num(seconds[skipped:]).reshape(windows, length), axis=1)
    usual = float(np.quantile(medians, _USUAL_QUANTILE))
    begin, end = _longest(medians > _SLOW * usual)
    if usual <= 0 or end - begin < max(2, _LEAST_PART * windows):
        return None
    edges = np.append(moments[skipped::length][:windows], moments[-1])
    if edges[end] - edges[begin] < _LEAST_SECONDS:
        return None
    return Stretch(
        began=float(edges[begin]),
        ended=float(edges[end]),
        to_the_end=end == windows,
        step_seconds=float(medians[begin:end].mean()),
        usual_seconds=usual,
    )


def _longest(flags: Booleans) -> tuple[int, int]:
    """Return begin and end of the longest sequence of True."""
    padded = np.concatenate([[False], flags, [False]]).astype(np.int8)
    begins, ends = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1)
    if not len(begins):
        return 0, 0
    which = int((ends - begins).argmax())
    return int(begins[which]), int(ends[which])


def _reason(log: RunLog, stretch: Stretch) -> tuple[str, str, dict[str, float]]:
    """Return kind, text and figures of the reason: compares the machine's state in and outside the period."""
    machine = log.machine
    inside = (machine["time"] >= stretch.began) & (machine["time"] <= stretch.ended)
    others = machine["cpu_percent"] - machine["process_cpu_percent"]
    theirs, theirs_usually = _mean(others[inside]), _mean(others[~inside])
    clock, clock_usually = _mean(machine["cpu_mhz"][inside]), _mean(machine["cpu_mhz"][~inside])
    heat = machine["cpu_temperature"][inside]
    hottest = float(np.nanmax(heat)) if np.isfinite(heat).any() else float("nan")
    figures = {
        "others_percent": theirs,
        "others_percent_usually": theirs_usually,
        "cpu_mhz": clock,
        "cpu_mhz_usually": clock_usually,
        "hottest_c": hottest,
    }
    figures = {name: value for name, value in figures.items() if np.isfinite(value)}
    if theirs - theirs_usually > _OTHERS_PERCENT:
        why = f"; other programs took {theirs:.0f}% of the processor, usually {max(0.0, theirs_usually):.0f}%"
        return "other_programs", why, figures
    slower_clock = clock < (1 - _CLOCK_LOSS) * clock_usually
    if slower_clock or hottest >= _HOT_C:
        heat_words = f", at up to {hottest:.0f} °C" if np.isfinite(hottest) else ""
        clock_words = (
            f"; its clock went from {clock_usually:,.0f} to {clock:,.0f} MHz" if slower_clock else ""
        )
        return "throttled", f"{clock_words}{heat_words}", figures
    return (
        "slowed",
        "; the log does not show why (heat, a power limit or a busy host are possible)",
        figures,
    )


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
