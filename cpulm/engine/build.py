"""The only place where settings become objects."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cpulm.data.loader import Loader
from cpulm.data.tokenfile import TokenFolder
from cpulm.engine.checkpoint import Checkpoint, Position
from cpulm.engine.compilation import ready_forward
from cpulm.engine.needs import total_steps
from cpulm.engine.randomness import restore_random_states
from cpulm.engine.runtime import Runtime
from cpulm.engine.trainer import Horizon, Trainer
from cpulm.errors import DataError
from cpulm.events import Listener
from cpulm.model.transformer import Transformer
from cpulm.optim.build import build_optimizers
from cpulm.rundir import RunDir
from cpulm.settings import Settings


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
    return Parts(model, build_optimizers(model, train), loader)


def build_trainer(
    settings: Settings,
    tokens: TokenFolder,
    parts: Parts,
    runtime: Runtime,
    run: RunDir,
    *,
    emit: Listener,
    should_stop: Callable[[], bool],
    checkpoint: Checkpoint | None = None,
    seconds_gone: float = 0.0,
) -> Trainer:
    """Assemble a run; from ``checkpoint`` it goes on exactly where that was written.

    Args:
        seconds_gone: of a time horizon, what was spent before this call on getting ready.
    """
    began = time.monotonic()
    forward, runtime = ready_forward(parts.model, parts.loader, runtime, emit)
    position = Position()
    if checkpoint is not None:
        _restore(parts, checkpoint, tokens)
        position = checkpoint.position
    train = settings.train
    steps = total_steps(train, settings.tokens_per_step, len(tokens.train))
    seconds = None
    if train.max_time is not None:
        seconds = train.max_time - seconds_gone - (time.monotonic() - began)
    return Trainer(
        settings=settings,
        run=run,
        model=parts.model,
        forward=forward,
        optimizers=parts.optimizers,
        loader=parts.loader,
        tokens=tokens,
        tokenizer=tokens.tokenizer,
        runtime=runtime,
        horizon=Horizon(steps=steps, seconds=seconds),
        emit=emit,
        should_stop=should_stop,
        position=position,
    )


def _restore(parts: Parts, checkpoint: Checkpoint, tokens: TokenFolder) -> None:
    if checkpoint.vocab_size != tokens.vocab_size or checkpoint.data.get("digest") != tokens.digest:
        raise DataError(
            f"the training data at {tokens.path} is not what the checkpoint was trained on",
            "bring back the same files, or start a new run",
        )
    parts.model.load_state_dict(checkpoint.model_state)
    for optimizer, state in zip(parts.optimizers, checkpoint.optimizer_states, strict=True):
        optimizer.load_state_dict(state)
    restore_random_states(checkpoint.random_state)
