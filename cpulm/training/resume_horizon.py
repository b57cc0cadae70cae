"""Sets a new horizon for a resumed run, and emits the notices before a run begins or continues."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.command import typed
from cpulm.data.packing import documents_in
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import SettingsError
from cpulm.estimate import requirements
from cpulm.estimate.repeated_text import describe_passes, passes_warning
from cpulm.estimate.requirements import Requirements
from cpulm.events import Listener, Notice
from cpulm.optim.schedule import lr_scale
from cpulm.run_dir import RunDir
from cpulm.settings import HORIZONS, Settings
from cpulm.settings.resolve_settings import replaced
from cpulm.training.horizon import horizon_of
from cpulm.units import format_bytes, format_count, format_duration, typed_duration


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


def require_time(plan: Requirements, settings: Settings, seconds_gone: float = 0.0) -> None:
    """Raise SettingsError if a horizon in time is over before one update could be made.

    Args:
        seconds_gone: seconds of ``max_time`` that the preparation took.
    """
    train, step = settings.train, plan.step_seconds or 0.0
    horizon = horizon_of(settings, plan.train_tokens, seconds_gone)
    if horizon.is_time and horizon.seconds_left(0.0, time.time()) < step:
        asked = (
            f"--max-time {format_duration(train.max_time)}" if train.max_time else f"--until {train.until}"
        )
        prepared = f"preparing took {format_duration(seconds_gone)}, and " if seconds_gone else ""
        raise SettingsError(
            f"{asked} is over before the first update: {prepared}an update takes {format_duration(step)}; "
            "the model would be untrained",
            f"give it more time: --max-time {typed_duration(_longer(seconds_gone, step))}",
        )


def _longer(seconds_gone: float, step: float) -> float:
    """Whole minutes that leave as much time to train as the preparation took, and enough for 100 updates."""
    return 60.0 * math.ceil(max(2.0 * seconds_gone, seconds_gone + 100.0 * step) / 60.0)


def require_steps(plan: Requirements, settings: Settings) -> None:
    """Raise SettingsError if there are fewer updates than generations."""
    generations = settings.train.generations
    if plan.steps is not None and plan.steps < generations:
        raise SettingsError(
            f"the run has {plan.steps} steps for {generations} generations, and each needs at least one",
            "give it a longer horizon, or lower --generations",
        )


def require_unfinished(settings: Settings, plan: Requirements, checkpoint: Checkpoint, run: RunDir) -> None:
    """Raise SettingsError if the run is complete, including its last validation.

    A run that was killed between its last update and that validation can be resumed, to validate.
    """
    state = checkpoint.state
    if state.validated_step != state.step:
        return
    horizon = horizon_of(settings, plan.train_tokens).of_generation(state, settings.train.generations)
    if horizon.progress(state.step, state.elapsed_seconds, time.time()) >= 1.0:
        why = ""
        if horizon.last_step is not None and state.step >= horizon.last_step:
            why = (
                f": it has seen its text as often as train.max_passes allows "
                f"({settings.train.max_passes:g}), so more time would change nothing"
            )
        raise SettingsError(
            f"{run.path} is already finished (step {state.step}){why}",
            f"extend it, as with `cpulm resume {typed(run.path)} --steps {max(state.step, 1) * 2}`",
        )


def report_requirements(
    plan: Requirements, settings: Settings, emit: Listener, *, spent_seconds: float, is_planned: bool
) -> None:
    """Report the time, memory and disk that a run will need, and as :func:`report_passes`."""
    seconds = requirements.seconds_needed(plan, settings.train) or 0.0
    duration = format_duration(seconds)
    if seconds == plan.train_seconds:
        duration = f"about {duration} without validations"
    emit(
        Notice(
            level="info",
            message=f"this run will need {duration}, {format_bytes(plan.memory_bytes)} of memory, "
            f"up to {format_bytes(plan.disk_bytes)} of disk",
        )
    )
    passes = requirements.expected_passes(plan, settings.train, spent_seconds=spent_seconds)
    report_passes(passes, plan, settings, emit, is_planned=is_planned)


def report_passes(
    passes: float | None, plan: Requirements, settings: Settings, emit: Listener, *, is_planned: bool = False
) -> None:
    """Report how often the run will see its text, with a warning if that is too often, and its patience.

    Args:
        is_planned: whether the planner chose the passes and what suits them, so that there is no warning.
    """
    train = settings.train
    if passes is None:
        return
    about = "" if plan.steps is not None else "about "
    text = f"the training text has {format_count(plan.train_tokens)} tokens; the run trains on "
    text += f"{about}{describe_passes(passes)}"
    if train.generations > 1:
        text += f" in each of {train.generations} generations"
    stale = train.stale_validations
    if train.patience is None and stale is not None:
        text += f"; it ends early after {stale} validations without a new best loss (--patience 0: never)"
    emit(Notice(level="info", message=text))
    warning = passes_warning(passes, plan.train_tokens, plan.params_non_embedding, settings)
    if warning is not None and not is_planned:
        emit(Notice(level="warning", message=warning))


def report_documents(tokens: TokenFolder, settings: Settings, emit: Listener) -> None:
    """Warn if documents are masked but there is only one, or if records are longer than a window."""
    train, block = settings.train, settings.model.block_size
    if train.masks_documents and not tokens.separates_documents():
        name = "records" if train.records else "document_mask"
        message = f"train.{name} has no effect: the training text is one document"
        emit(Notice(level="warning", message=message))
    if train.records:
        _, lengths = documents_in(tokens.train, tokens.tokenizer.eot_id)
        cut, longest = int((lengths > block).sum()), int(lengths.max())
        if cut:
            records = "1 record is" if cut == 1 else f"{cut:,} records are"
            message = f"{records} longer than the block size of {block}: only their beginnings are used"
            message += f"; the longest needs --block-size {longest}"
            emit(Notice(level="warning", message=message))


def report_new_horizon(
    checkpoint: Checkpoint, settings: Settings, plan: Requirements, emit: Listener
) -> None:
    """Report how a new horizon changes the learning rate at the step from which the run continues."""
    old, new = checkpoint.settings.train, settings.train
    if new == old:
        return
    state, now = checkpoint.state, time.time()
    rates = []
    names = "train.lr and train.muon_lr go" if new.optimizer == "muon" else "the learning rate goes"
    for one in (checkpoint.settings, settings):
        train = one.train
        horizon = horizon_of(one, plan.train_tokens).of_generation(state, train.generations)
        scale = lr_scale(
            train.schedule,
            state.generation_steps,
            horizon.generation_progress(state.step, state.elapsed_seconds, now),
            horizon.warmup_steps(train.warmup_steps),
            train.decay_fraction,
            train.min_lr_ratio,
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
