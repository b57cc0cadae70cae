"""A run's end put elsewhere, and what is said of needs and ends before a run begins or goes on."""

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


def extended(settings: Settings, horizon: Mapping[str, Any]) -> Settings:
    """The settings with another horizon, where one is given.

    Raises:
        SettingsError: where several are.
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


def refuse_finished(settings: Settings, plan: Requirements, checkpoint: Checkpoint, run: RunDir) -> None:
    """Raises SettingsError where the checkpoint stands at the end of its run, the last validation included.

    A run that was killed between its last update and that validation goes on, to validate.
    """
    position = checkpoint.position
    if position.validated_step != position.step:
        return
    horizon = horizon_of(settings.train, plan.steps)
    if horizon.progress(position.step, position.elapsed_seconds, time.time()) >= 1.0:
        raise SettingsError(
            f"{run.path} has reached its horizon (step {position.step})",
            f"extend it, as with `cpulm resume {run.path} --steps {max(position.step, 1) * 2}`",
        )


def say_needs(plan: Requirements, settings: Settings, emit: Listener) -> None:
    """Say the time, memory and disk that a run will need."""
    seconds = requirements.seconds_needed(plan, settings.train) or 0.0
    duration = (
        f"about {format_duration(seconds)} of training steps"
        if plan.steps is not None
        else f"{format_duration(seconds)} as asked"
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


def say_missing_documents(tokens: TokenFolder, settings: Settings, emit: Listener) -> None:
    """Warn where documents are to be masked and nothing in the training text tells them apart."""
    if settings.train.document_mask and not tokens.separates_documents():
        emit(
            Notice(
                level="warning",
                message="train.document_mask has no effect: no end-of-text token stands inside the training "
                "text, which is one document, or a few whose ends are held out for validation (with "
                "--val-data they stay whole)",
            )
        )


def say_extension(checkpoint: Checkpoint, settings: Settings, plan: Requirements, emit: Listener) -> None:
    """Say what a new horizon does to the learning rate at the step where the run goes on."""
    old, new = checkpoint.settings.train, settings.train
    if new == old:
        return
    position, now = checkpoint.position, time.time()
    old_steps = requirements.total_steps(old, settings.tokens_per_step, plan.train_tokens)
    rates = []
    names = "train.lr and train.muon_lr go" if new.optimizer == "muon" else "the learning rate goes"
    for train, steps in ((old, old_steps), (new, plan.steps)):
        done = horizon_of(train, steps).progress(position.step, position.elapsed_seconds, now)
        scale = lr_scale(
            train.schedule, position.step, done, train.warmup_steps, train.decay_fraction, train.min_lr_ratio
        )
        peaks = (train.lr, train.muon_lr) if train.optimizer == "muon" else (train.lr,)
        rates.append(" and ".join(f"{peak * scale:.2e}" for peak in peaks))
    emit(
        Notice(
            level="info",
            message=f"new horizon: the {new.schedule} schedule is stretched over it, so at step "
            f"{position.step} {names} from {rates[0]} to {rates[1]}",
        )
    )
