"""Trains a model for Python programs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpulm.api.language_model import LOG, Model, load
from cpulm.api.new_run import resolve_new_run
from cpulm.api.recording import page_at_the_end
from cpulm.command import typed
from cpulm.errors import SettingsError, StoppedError
from cpulm.events import Event, Listener, Notice, RunFinished
from cpulm.settings.resolve_settings import is_given
from cpulm.training import run

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING}


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended.

    Attributes:
        path: its folder.
        step: its updates.
        best_loss: the lowest validation loss, in nats per token, which ``best.pt`` has; None without one.
        best_bits_per_byte: the same in bits per byte.
    """

    path: Path
    step: int
    best_loss: float | None
    best_bits_per_byte: float | None

    def load(self) -> Model:
        """Load its best model."""
        return load(self.path)


def train(
    config: Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    dashboard: bool = False,
) -> TrainedRun:
    """Train a model, as ``cpulm train --config`` does, in the main thread of the program.

    Args:
        config: settings by section, such as ``{"preset": "tiny", "train": {"steps": 100}}``, or by dotted
            key; or the path of a YAML file of them. The environment (``CPULM_TRAIN__LR``) precedes it.
        out: the run's folder; None for the first free one under ``runs/``.
        dashboard: show the run as the command does. Otherwise only its notices are logged, to the logger
            ``cpulm``.

    Raises:
        CpulmError: for everything that the user can correct.
        StoppedError: if it was stopped by a signal or ``cpulm stop``; everything is saved.
    """
    source = config if isinstance(config, Mapping) else Path(config)
    given: dict[str, Any] = {"config": source, "environ": os.environ, "assignments": (), "flags": {}}
    settings, _ = resolve_new_run(None, given)
    if settings.distributed.needs_launcher:
        raise SettingsError(
            "distributed.processes and distributed.nodes are for the command, and this is one process",
            "write the settings to a file, and train with `cpulm train --config FILE`",
        )
    is_wish = not is_given("model.block_size", **given)
    finished: list[RunFinished] = []

    def show(event: Event) -> None:
        if isinstance(event, RunFinished):
            finished.append(event)
        listener(event)

    with page_at_the_end(LOG.info, LOG.warning) as record, _shown(dashboard) as listener:
        outcome = run.train(
            settings,
            None if out is None else Path(out),
            show=show,
            record=record,
            leave=getattr(listener, "leave", None),
            block_is_wish=is_wish,
        )
    if outcome.reason == "stopped":
        place = outcome.run.path
        raise StoppedError(f"everything is saved in {place}", f"continue with `cpulm resume {typed(place)}`")
    best = finished[-1]
    return TrainedRun(outcome.run.path, outcome.step, best.best_loss, best.best_bits_per_byte)


def _shown(dashboard: bool) -> AbstractContextManager[Listener]:
    if not dashboard:
        return nullcontext(_log)
    from cpulm.ui.watch import choose_mode, watch

    return watch(choose_mode(json=False, headless=False))


def _log(event: Event) -> None:
    if isinstance(event, Notice):
        LOG.log(_LEVELS[event.level], event.message)
