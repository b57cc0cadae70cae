"""Findings from the losses: progress, overfitting, learning rate, batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from cpulm.analysis.report import Figures, Finding, Floats
from cpulm.analysis.trend import FEWEST_POINTS, Gain, gain
from cpulm.estimate.overfitting import Rise, risen_since
from cpulm.events import RolledBack
from cpulm.runlog.run_log import Booleans, RunLog
from cpulm.units import format_duration

_HOUR = 3600.0
_FURTHEST = 3.0
"""Multiple of the tokens so far up to which a curve is extrapolated."""
_SMALL_GAIN = 0.005
"""Fraction of the loss: a smaller gain in an hour means that the run has converged."""
_WIDE_NATS = 0.05
"""Width of a gain's range from which on it is shown with two digits."""
_NEAR_STEPS = 50
"""Steps over which the training loss is averaged to compare two points of a run."""
_FULL_LR = 0.9
"""Fraction of the peak above which the learning rate counts as full."""
_LATE = 0.25
"""Fraction of the tokens before which losses are left out of the fit."""
_LOSS_BINS = 16
_BLOCK_STEPS, _LOOK_BACK_BLOCKS = 5, 20
"""Spikes are detected in block means, so that one unusual batch is not a spike."""
_SPIKE_NATS, _SPIKE_DEVIATIONS = 0.3, 6.0
_MANY_SPIKES = 3
_SMALL_BATCH_NOISE = 0.15
"""Fraction of the loss, from one step to the next. The preset tiny learned well at 0.09."""
_GROWN_GRADIENTS = 3.0
_STUCK_FALL_NATS, _STUCK_PART = 0.1, 0.1
"""The smallest fall during the decay that counts, and the fraction of it expected before the decay."""
_FEWEST_STEPS = 100


def learning_findings(log: RunLog, figures: Figures, settings: dict[str, Any]) -> Iterator[Finding]:
    """Yield all findings; none for a run that is too short."""
    worse = _overfitting(log, figures)
    if worse is not None:
        yield worse
    else:
        yield from _improving(log, settings, figures)
    yield from _learning_rate(log)
    yield from _batch(log, settings, figures)


# Validation


def _validations(log: RunLog) -> tuple[Floats, Floats]:
    """Steps and losses of the validations, float64."""
    found = log.validations
    return np.array([v.step for v in found], dtype=float), np.array([v.loss for v in found], dtype=float)


def _overfitting(log: RunLog, figures: Figures) -> Finding | None:
    """Detect a validation loss that has risen from its minimum in the two last validations."""
    steps, losses = _validations(log)
    best = risen_since(losses.tolist())
    if best is None:
        return None
    rise = Rise(
        since_step=int(steps[best]),
        best_loss=float(losses[best]),
        last_loss=float(losses[-1]),
        train_loss_then=_train_loss_at(log, steps[best]),
        train_loss_now=_train_loss_at(log, steps[-1]),
        passes=figures.epochs,
    )
    numbers = {
        "since_step": float(rise.since_step),
        "best_loss": rise.best_loss,
        "last_loss": rise.last_loss,
        "rise_nats": rise.last_loss - rise.best_loss,
        "train_loss_then": rise.train_loss_then,
        "train_loss_now": rise.train_loss_now,
        "epochs": rise.passes,
    }
    return Finding("overfitting" if rise.overfits else "worsening", "warning", rise.describe(), numbers)


def _train_loss_at(log: RunLog, step: float) -> float:
    """Mean training loss of the steps up to ``step``."""
    at = int(np.searchsorted(log.steps["step"], step, side="right"))
    near = log.steps["loss"][max(0, at - _NEAR_STEPS) : at]
    return float(np.nanmean(near)) if np.isfinite(near).any() else float("nan")


def _improving(log: RunLog, settings: dict[str, Any], figures: Figures) -> Iterator[Finding]:
    """Estimate by how much another hour (less after a short run) would lower the loss."""
    if not figures.train_tokens or not figures.seconds or figures.best_loss is None:
        return
    seconds = min(_HOUR, _FURTHEST * figures.seconds)
    more = seconds * figures.tokens / figures.seconds
    tokens, losses, source = _losses_to_fit(log, figures)
    found = gain(tokens, losses, figures.tokens, more, figures.train_tokens)
    # A loss cannot be below 0. For a text that the model knows by heart, the law would promise that.
    if found is not None and found.nats < figures.best_loss:
        found, source = _include_decay(log, figures, found, more, source)
        at_the_end = "" if _decay_is_ahead(log, settings, figures) else " at the end"
        yield _improvement(found, figures, seconds, source, at_the_end)


def _include_decay(log: RunLog, figures: Figures, found: Gain, more: float, source: str) -> tuple[Gain, str]:
    """Return the gain with an upper bound from a fit that includes the losses during the decay.

    A longer run has a longer decay, which gains more: the preset tiny at twice its steps gained 0.35 nats,
    where a power law through its losses at the full rate predicted 0.23, and one through all of them 0.41.
    """
    assert figures.train_tokens is not None
    steps, losses = _validations(log)
    full = _at_full_lr(log)
    if not len(full) or full[-1]:
        return found, source
    tokens = log.steps["tokens"][np.clip(np.searchsorted(log.steps["step"], steps), 0, len(full) - 1)]
    late = tokens >= _LATE * figures.tokens
    every = gain(tokens[late], losses[late], figures.tokens, more, figures.train_tokens)
    if every is None or every.high <= found.high:
        return found, source
    return replace(found, high=every.high), f"{source}; the upper bound counts the decay too"


def _decay_is_ahead(log: RunLog, settings: dict[str, Any], figures: Figures) -> bool:
    """Whether the run is at its full learning rate and its schedule still has a decay to come."""
    full = _at_full_lr(log)
    is_over = figures.horizon_steps is not None and figures.steps >= figures.horizon_steps
    schedule = (settings.get("train") or {}).get("schedule")
    return not is_over and schedule != "constant" and bool(len(full)) and bool(full[-1])


def _improvement(found: Gain, figures: Figures, seconds: float, source: str, at_the_end: str) -> Finding:
    assert figures.best_loss is not None
    to = figures.best_loss - found.nats
    times = 1 + seconds / figures.seconds
    longer = "hour" if seconds == _HOUR else format_duration(seconds)
    # No more digits than the range justifies.
    digits = 2 if found.high - found.low >= _WIDE_NATS else 3
    text = (
        f"another {longer} ({times:.1f} times as long in total) would lower the validation loss by about "
        f"{found.nats:.{digits}f} nats ({found.low:.{digits}f} to {found.high:.{digits}f}), to "
        f"{to:.{digits}f}, by a power law through {source}"
    )
    if not at_the_end:
        text += "; the decay of the learning rate, which is still to come, will lower it further"
    numbers = {
        "gain_nats": found.nats,
        "gain_low": found.low,
        "gain_high": found.high,
        "loss_then": to,
        "more_seconds": seconds,
    }
    if found.nats < _SMALL_GAIN * figures.best_loss:
        return Finding("converged", "good", f"Little is left to gain with more time: {text}.", numbers)
    return Finding("improving", "good", f"Still improving{at_the_end}: {text}.", numbers)


def _losses_to_fit(log: RunLog, figures: Figures) -> tuple[Floats, Floats, str]:
    """Return tokens and losses at one learning rate: validations if there are enough, else training losses.

    The decay of the learning rate lowers the loss, too, so a power law through these losses would be too
    optimistic. In the first epoch the training loss can be used instead; otherwise all validations are used.
    """
    steps, losses = _validations(log)
    full = _at_full_lr(log)
    at = np.clip(np.searchsorted(log.steps["step"], steps), 0, max(0, len(full) - 1))
    tokens = log.steps["tokens"][at] if len(full) else np.zeros(0)
    chosen = full[at] if len(full) else np.zeros(0, dtype=bool)
    # The first losses, of an untrained model, do not follow a power law.
    late = chosen & (tokens >= _LATE * tokens[chosen].max(initial=0.0))
    if late.sum() >= FEWEST_POINTS:
        return tokens[late], losses[late], "the validations at full learning rate"
    fresh = full & (log.steps["epoch"] <= 1.0)
    if fresh.sum() >= _FEWEST_STEPS:
        return *_binned(log.steps["tokens"][fresh], log.steps["loss"][fresh]), (
            "the training loss at full learning rate"
        )
    late = tokens >= _LATE * figures.tokens
    return tokens[late], losses[late], "all validations"


def _binned(tokens: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """Return means over logarithmic bins of tokens, without the steep beginning."""
    edges = np.geomspace(max(tokens[0], _LATE * tokens[-1]), tokens[-1] * (1 + 1e-9), _LOSS_BINS + 1)
    which = np.digitize(tokens, edges) - 1
    inside = [(which == part) & np.isfinite(losses) for part in range(_LOSS_BINS)]
    means = [(tokens[part].mean(), losses[part].mean()) for part in inside if part.any()]
    return np.array([mean[0] for mean in means]), np.array([mean[1] for mean in means])


def _at_full_lr(log: RunLog) -> Booleans:
    """Which steps had at least nine tenths of the peak learning rate."""
    lr = log.steps["lr"]
    return np.zeros(0, dtype=bool) if not len(lr) else lr >= _FULL_LR * np.nanmax(lr)


# Learning rate


def _learning_rate(log: RunLog) -> Iterator[Finding]:
    spikes, highest = _spikes(log)
    back = [event for _, event in log.events if isinstance(event, RolledBack)]
    norms = log.steps["grad_norm"][np.isfinite(log.steps["grad_norm"])]
    ratio = float(norms.max() / max(float(np.median(norms)), 1e-12)) if len(norms) else 0.0
    numbers = {
        "spikes": float(len(spikes)),
        "rollbacks": float(len(back)),
        "highest_nats": highest,
        "first_step": float(spikes[0]) if len(spikes) else float(back[0].step if back else 0),
        "grad_norm_max_over_median": ratio,
    }
    if len(spikes) >= _MANY_SPIKES or back:
        seen = []
        if len(spikes):
            seen.append(
                f"{len(spikes)} spike{'s' * (len(spikes) > 1)} of the loss, by up to {highest:.2f} nats, the "
                f"first at step {spikes[0]:,}"
            )
        if back:
            times = f"{len(back)} time{'s' * (len(back) > 1)}"
            seen.append(f"the run was rolled back to a checkpoint {times}, first from step {back[0].step:,}")
        yield Finding(
            "learning_rate_too_high",
            "warning",
            f"The learning rate is probably too high: {'; '.join(seen)}. The gradient norm rose to "
            f"{ratio:.0f} times its median. Try half of train.lr and train.muon_lr, or more warmup_steps.",
            numbers,
        )
        return
    if len(spikes):
        where = " and ".join(f"{step:,}" for step in spikes)
        yield Finding(
            "spikes",
            "note",
            f"The loss spiked at step {where}, by up to {highest:.2f} nats, and recovered by itself.",
            numbers,
        )
    yield from _stuck_or_growing(log)


def _stuck_or_growing(log: RunLog) -> Iterator[Finding]:
    """Detect signs without spikes: no progress until the decay, or growing gradients."""
    full = np.flatnonzero(_at_full_lr(log))
    if len(full) < _FEWEST_STEPS:
        return
    first, last = full[len(full) // 5 : 2 * len(full) // 5], full[-len(full) // 5 :]
    loss, norm = log.steps["loss"], log.steps["grad_norm"]
    before, after = float(np.nanmean(loss[first])), float(np.nanmean(loss[last]))
    end = float(np.nanmean(loss[-_NEAR_STEPS:]))
    if after - end > _STUCK_FALL_NATS and before - after < _STUCK_PART * (after - end):
        yield Finding(
            "learning_rate_too_high",
            "warning",
            f"At the full learning rate almost nothing was learned: training loss {before:.3f} early "
            f"and {after:.3f} late. It fell to {end:.3f} only as the rate decayed. Try half of train.lr and "
            "train.muon_lr.",
            {"loss_early": before, "loss_late": after, "loss_end": end},
        )
    small, large = float(np.nanmedian(norm[first])), float(np.nanmedian(norm[last]))
    if large > _GROWN_GRADIENTS * small > 0:
        yield Finding(
            "gradients_grow",
            "warning",
            f"The gradient norm grew from {small:.2g} to {large:.2g} at the same learning rate: it is near "
            "this run's limit. Try half of train.lr and train.muon_lr.",
            {"grad_norm_early": small, "grad_norm_late": large},
        )


def _spikes(log: RunLog) -> tuple[list[int], float]:
    """Return the steps at which spikes of the loss begin, and the height of the highest in nats."""
    losses = log.steps["loss"]
    blocks = len(losses) // _BLOCK_STEPS
    if blocks <= _LOOK_BACK_BLOCKS:
        return [], 0.0
    means = np.nanmean(
        np.nan_to_num(losses[: blocks * _BLOCK_STEPS], nan=0.0).reshape(blocks, _BLOCK_STEPS), axis=1
    )
    before = np.lib.stride_tricks.sliding_window_view(means[:-1], _LOOK_BACK_BLOCKS)
    usual = np.median(before, axis=1)
    deviation = 1.4826 * np.median(np.abs(before - usual[:, None]), axis=1)
    above = means[_LOOK_BACK_BLOCKS:] - usual
    high = np.flatnonzero(above > np.maximum(_SPIKE_NATS, _SPIKE_DEVIATIONS * deviation))
    if not len(high):
        return [], 0.0
    begins = high[np.concatenate([[True], np.diff(high) > _LOOK_BACK_BLOCKS // 2])]
    steps = log.steps["step"][(begins + _LOOK_BACK_BLOCKS) * _BLOCK_STEPS]
    return [int(step) for step in steps], float(above[high].max())


# Batch


def _batch(log: RunLog, settings: dict[str, Any], figures: Figures) -> Iterator[Finding]:
    """Detect a loss that jumps by a large fraction from step to step."""
    losses = log.steps["loss"]
    late = losses[-max(_FEWEST_STEPS, len(losses) // 4) :]
    late = late[np.isfinite(late)]
    if len(losses) < _FEWEST_STEPS or len(late) < 2 or not figures.tokens_per_step:
        return
    # Differences of adjacent steps remove the trend; the median makes the estimate robust to spikes.
    noise = 1.4826 * float(np.median(np.abs(np.diff(late)))) / 2**0.5
    share = noise / max(float(np.median(late)), 1e-9)
    if share <= _SMALL_BATCH_NOISE:
        return
    accumulated = (settings.get("train") or {}).get("grad_accum_steps") or 1
    times = min(64, 2 ** max(1, int(np.ceil(2 * np.log2(share / _SMALL_BATCH_NOISE)))))
    yield Finding(
        "batch_too_small",
        "note",
        f"The batch is small: with {figures.tokens_per_step:,} tokens a step the loss jumps by ±{noise:.2f} "
        f"nats ({share:.0%}) from one step to the next, so each step follows its own few texts. Try a larger "
        f"train.micro_batch_size, or --set train.grad_accum_steps={accumulated * times}.",
        {"noise_nats": noise, "noise_share": share, "tokens_per_step": float(figures.tokens_per_step)},
    )
