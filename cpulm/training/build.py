"""The only place where settings become objects."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint, TrainState
from cpulm.data.loader import Loader, val_batch_count
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import DataError
from cpulm.estimate.requirements import total_steps
from cpulm.events import Listener, Notice
from cpulm.execution.runtime import Runtime
from cpulm.interrupts import StopRequest
from cpulm.model.transformer import Transformer
from cpulm.optim.build_optimizers import build_optimizers
from cpulm.run_dir import RunDir
from cpulm.settings import Settings
from cpulm.system.power import BatteryWatch
from cpulm.system.run_clock import RunClock
from cpulm.training.horizon import Horizon, horizon_of
from cpulm.training.trainer import Trainer
from cpulm.units import format_duration


@dataclass
class Parts:
    """The objects that learn, freshly made: what a measurement may wear out and make anew."""

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    loader: Loader


def build_parts(settings: Settings, tokens: TokenFolder, runtime: Runtime) -> Parts:
    """Model, optimizers and loader as they stand before the first step: a function of the seed."""
    train, block = settings.train, settings.model.block_size
    loader = Loader(tokens.train, block, train.micro_batch_size, train.seed)
    torch.manual_seed(train.seed)
    model = Transformer(settings.model, tokens.vocab_size)
    model.init_weights(train.seed)
    model.to(runtime.device)
    runtime.equip(model)
    model.mask_documents(tokens.tokenizer.eot_id if train.document_mask else None)
    return Parts(model, build_optimizers(model, train, runtime.int8_kernels), loader)


def build_trainer(
    settings: Settings,
    tokens: TokenFolder,
    parts: Parts,
    runtime: Runtime,
    run: RunDir,
    *,
    emit: Listener,
    stop: StopRequest,
    checkpoint: Checkpoint | None = None,
    began: float,
    step_seconds: float,
) -> Trainer:
    """Assemble a run; from ``checkpoint`` it goes on exactly where that was written.

    Args:
        began: when the command began, by ``time.monotonic``: a time horizon counts from there.
        step_seconds: of one update, as far as known.
    """
    position = TrainState()
    if checkpoint is not None:
        _require_same(checkpoint, tokens)
        checkpoints.restore(checkpoint, parts.model, parts.optimizers)
        position = checkpoint.position
    return Trainer(
        settings=settings,
        run=run,
        model=parts.model,
        forward=parts.model,
        optimizers=parts.optimizers,
        loader=parts.loader,
        tokens=tokens,
        tokenizer=tokens.tokenizer,
        runtime=runtime,
        horizon=_horizon(settings, tokens, time.monotonic() - began, step_seconds),
        emit=emit,
        stop=stop,
        clock=RunClock(position.elapsed_seconds, lambda seconds: emit(_slept(seconds))),
        battery=BatteryWatch() if settings.runtime.pause_on_battery else None,
        position=position,
    )


def _horizon(settings: Settings, tokens: TokenFolder, seconds_gone: float, step_seconds: float) -> Horizon:
    """Of a time horizon, enough is kept back for a validation: a third of a training pass, forward only."""
    train, block = settings.train, settings.model.block_size
    steps = total_steps(train, settings.tokens_per_step, len(tokens.train))
    batches = val_batch_count(tokens.val, block, train.micro_batch_size, settings.eval.batches)
    reserve = batches * step_seconds / train.grad_accum_steps / 3
    return replace(horizon_of(train, steps, seconds_gone), reserve_seconds=reserve)


def _slept(seconds: float) -> Notice:
    return Notice(
        level="info",
        message=f"the machine slept, or this process was stopped, for {format_duration(seconds)}; "
        "that time is not counted",
    )


def _require_same(checkpoint: Checkpoint, tokens: TokenFolder) -> None:
    if checkpoint.vocab_size != tokens.vocab_size or checkpoint.data.get("digest") != tokens.digest:
        raise DataError(
            f"the training data at {tokens.path} is not what the checkpoint was trained on",
            "bring back the same files, or start a new run",
        )
