"""Sets a new horizon for a resumed run, and emits the notices before a run begins or continues."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import SettingsError
from cpulm.estimate import requirements
from cpulm.estimate.requirements import Requirements
from cpulm.events import Listener, Notice
from cpulm.optim.schedule import lr_scale
from cpulm.run_dir import RunDir
from cpulm.settings import HORIZONS, Settings
from cpulm.settings_resolver import replaced
from cpulm.training.horizon import horizon_of
from cpulm.units import format_bytes, format_count, format_duration


def with_horizon(settings: Settings, horizon: Mapping[str, Any]) -> Settings:
    """Replace the horizon of ``settings``, if another one is given.

    Args:
        horizon: values by the settings' names; None for those not given.

    Raises:
        SettingsError: if several are given.
    """
    given = {name: value for name, value in horizon.items() if value is not None}
    if not given:
        return settings
    if len(given) > 1:
        raise SettingsError(f"{len(given)} horizons given: {', '.join(given)}", "keep one of them")
    none: dict[str, float | int | None] = dict.fromkeys(HORIZONS)
    train = settings.train.model_copy(update=none)
    return replaced(
        settings.model_copy(update={"train": train}),
        {f"train.{name}": value for name, value in given.items()},
    )


def require_unfinished(settings: Settings, plan: Requirements, checkpoint: Checkpoint, run: RunDir) -> None:
    """Raise SettingsError if the run is complete, including its last validation.

    A run that was killed between its last update and that validation can be resumed, to validate.
    """
    state = checkpoint.state
    if state.validated_step != state.step:
        return
    horizon = horizon_of(settings.train, plan.steps)
    if horizon.progress(state.step, state.elapsed_seconds, time.time()) >= 1.0:
        raise SettingsError(
            f"{run.path} is already finished (step {state.step})",
            f"extend it, as with `cpulm resume {run.path} --steps {max(state.step, 1) * 2}`",
        )


def report_requirements(plan: Requirements, settings: Settings, emit: Listener) -> None:
    """Report the time, memory and disk that a run will need."""
    seconds = requirements.seconds_needed(plan, settings.train) or 0.0
    duration = (
        f"about {format_duration(seconds)} without validations"
        if plan.steps is not None
        else f"{format_duration(seconds)} as requested"
    )
    emit(
        Notice(
            level="info",
            message=f"this run will need {duration}, {format_bytes(plan.memory_bytes)} of memory, "
            f"up to {format_bytes(plan.disk_bytes)} of disk; it trains on "
            f"{format_count(plan.train_tokens)} tokens"
            + (f", {plan.epochs:.2f} times" if plan.epochs is not None else ""),
        )
    )


def warn_if_mask_has_no_effect(tokens: TokenFolder, settings: Settings, emit: Listener) -> None:
    """Warn if ``document_mask`` is on but no token in the training text separates documents."""
    if settings.train.document_mask and not tokens.separates_documents():
        emit(
            Notice(
                level="warning",
                message="train.document_mask has no effect: the training text is one document",
            )
        )


def report_new_horizon(
    checkpoint: Checkpoint, settings: Settings, plan: Requirements, emit: Listener
) -> None:
    """Report how a new horizon changes the learning rate at the step from which the run continues."""
    old, new = checkpoint.settings.train, settings.train
    if new == old:
        return
    state, now = checkpoint.state, time.time()
    old_steps = requirements.total_steps(old, settings.tokens_per_step, plan.train_tokens)
    rates = []
    names = "train.lr and train.muon_lr go" if new.optimizer == "muon" else "the learning rate goes"
    for train, steps in ((old, old_steps), (new, plan.steps)):
        done = horizon_of(train, steps).progress(state.step, state.elapsed_seconds, now)
        scale = lr_scale(
            train.schedule, state.step, done, train.warmup_steps, train.decay_fraction, train.min_lr_ratio
        )
        peaks = (train.lr, train.muon_lr) if train.optimizer == "muon" else (train.lr,)
        rates.append(" and ".join(f"{peak * scale:.2e}" for peak in peaks))
    emit(
        Notice(
            level="info",
            message=f"new horizon: the {new.schedule} schedule is stretched over it, so at step "
            f"{state.step} {names} from {rates[0]} to {rates[1]}",
        )
    )
