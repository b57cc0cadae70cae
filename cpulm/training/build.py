"""Builds the objects of a run from its settings; no other module does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.load_model import model_of
from cpulm.checkpoints.train_state import TrainState
from cpulm.data.batches import TrainingBatches, ValidationBatches, training_batches
from cpulm.data.loader import Loader
from cpulm.data.packing import tokens_per_epoch
from cpulm.data.tokenfile import TokenFolder
from cpulm.distributed.gradients import GradientSum, OwnedTensors
from cpulm.distributed.rounds import OwnRows, WeightedAverage
from cpulm.distributed.world import SOLO, World
from cpulm.errors import DataError
from cpulm.estimate.validation_schedule import batches_computed
from cpulm.events import Listener, Notice
from cpulm.execution.runtime import Runtime
from cpulm.execution.teacher import Teacher
from cpulm.execution.update import GradientExchange, TrainingParts
from cpulm.interrupts import StopRequest
from cpulm.model.lora import adapt
from cpulm.model.transformer import Transformer
from cpulm.optim.build_optimizers import build_optimizers
from cpulm.optim.weight_average import WeightAverage
from cpulm.run_dir import RunDir
from cpulm.settings import Settings, TrainSettings, changed
from cpulm.system.power import BatteryWatch
from cpulm.system.run_clock import RunClock
from cpulm.training.horizon import Horizon, horizon_of
from cpulm.training.initial import InitialModel
from cpulm.training.low_traffic import OwnStates, states_of_main, without_own_states
from cpulm.training.trainer import Trainer
from cpulm.units import format_duration

RANDOM_BATCHES = 4
"""Batches of tokens that :func:`build_random_parts` draws: enough that no two micro-batches are the same."""


def build_parts(
    settings: Settings,
    tokens: TokenFolder,
    runtime: Runtime,
    teacher: Checkpoint | None = None,
    generation: int = 1,
    initial: InitialModel | None = None,
    world: World = SOLO,
) -> TrainingParts:
    """Build the parts of a run as they are before the first update: they depend only on settings and data.

    Each generation has a seed of its own.

    Args:
        teacher: the checkpoint of the model that teaches; None: none does.
        initial: the model whose weights are those before the first update; None: they are drawn.
        world: the processes that share every update.
    """
    seed = (settings.train.seed + generation - 1) % 2**32
    settings = changed(settings, train=changed(settings.train, seed=seed))
    loader = training_batches(settings, tokens)
    weights = None if initial is None else initial.fitted(settings.model, tokens.vocab_size)
    parts = _parts(settings, loader, tokens.vocab_size, tokens.tokenizer.eot_id, runtime, weights, world)
    if teacher is None:
        return parts
    return _taught(parts, model_of(teacher, tokens.tokenizer), settings.train, runtime)


def build_random_parts(
    settings: Settings, vocab_size: int, runtime: Runtime, world: World = SOLO
) -> TrainingParts:
    """Build the same parts on random tokens, for measurements: an update takes the same time on any text.

    A teacher is as large as the model.
    """
    train = settings.train
    count = RANDOM_BATCHES * train.micro_batch_size * settings.model.block_size + 1
    tokens = np.random.default_rng(train.seed).integers(0, vocab_size, count).astype(np.uint32)
    loader = Loader(tokens, settings.model.block_size, train.micro_batch_size, train.seed)
    parts = _parts(settings, loader, vocab_size, vocab_size - 1, runtime, world=world)
    if not train.has_teacher:
        return parts
    teacher = Transformer(settings.model, vocab_size)
    teacher.init_weights(train.seed + 1)
    return _taught(parts, teacher, train, runtime)


def _taught(
    parts: TrainingParts, teacher: Transformer, train: TrainSettings, runtime: Runtime
) -> TrainingParts:
    """Return the parts with a teacher; ``teacher`` becomes frozen."""
    taught = Teacher(teacher, train.teacher_weight, train.teacher_temperature, runtime)
    return replace(parts, teacher=taught, forward=parts.model.distillation_loss)


def _parts(
    settings: Settings,
    loader: TrainingBatches,
    vocab_size: int,
    eot_id: int,
    runtime: Runtime,
    weights: Mapping[str, Tensor] | None = None,
    world: World = SOLO,
) -> TrainingParts:
    """Build all but the teacher; ``weights`` are those before the first update, or drawn."""
    train = settings.train
    torch.manual_seed(train.seed)
    model = Transformer(settings.model, vocab_size)
    model.init_weights(train.seed)
    if weights is not None:
        checkpoints.copy_weights(weights, model)
    if settings.lora.rank:
        adapt(model, settings.lora, train.seed)
    model.to(runtime.device)
    runtime.equip(model)
    model.mask_documents(eot_id if train.masks_documents else None)
    averaged: WeightedAverage | None = None
    owners: OwnedTensors | None = None
    exchange: GradientExchange | None = None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sent_as = settings.distributed.sent_as(runtime.precision)
    quantize = None if runtime.int8_kernels is None else runtime.int8_kernels.left
    round_steps = 1
    if settings.distributed.mode == "diloco":
        round_steps = train.outer_steps
        by_speed = settings.distributed.share == "speed"
        averaged = WeightedAverage(world, sent_as, quantize)
        exchange = OwnRows(world, trained, train.micro_batch_size * train.grad_accum_steps, by_speed=by_speed)
    elif world.size > 1:
        owners = OwnedTensors(world, sent_as, quantize)
        exchange = GradientSum(world, trained, sent_as, quantize)
    optimizers = build_optimizers(model, train, runtime.int8_kernels, averaged, owners)
    fraction = train.average_fraction
    average = None if fraction is None else WeightAverage(model, fraction, round_steps)
    return TrainingParts(model, optimizers, loader, forward=model, average=average, exchange=exchange)


def build_trainer(
    settings: Settings,
    tokens: TokenFolder,
    parts: TrainingParts,
    runtime: Runtime,
    run: RunDir,
    *,
    emit: Listener,
    stop: StopRequest,
    checkpoint: Checkpoint | None = None,
    teacher: str = "",
    complete: bool = False,
    began: float,
    step_seconds: float,
    world: World = SOLO,
) -> Trainer:
    """Build the trainer of a run; with ``checkpoint`` the run continues exactly from its state.

    Args:
        teacher: the digest of the teacher's weights in the run's folder; empty without a teacher.
        complete: whether the run had come to its end, and now continues beyond it.
        began: ``time.monotonic()`` at the start of the command: a horizon in time counts from then.
        step_seconds: of one update; 0 if unknown.
        world: the processes that share every update.

    Raises:
        DataError: if the checkpoint was trained on other data, or does not fit the parts.
    """
    state = TrainState()
    own_states = None
    if settings.distributed.mode == "diloco" and world.size > 1:
        own_states = OwnStates(world, str(world.share(str(run.path.resolve()))))
    if checkpoint is not None:
        _require_same_data(checkpoint, tokens)
        checkpoint = _own_checkpoint(checkpoint, own_states, world, emit)
        checkpoints.restore(checkpoint, parts.model, parts.optimizers, parts.average)
        state = checkpoint.state
    state.teacher = teacher
    return Trainer(
        settings=settings,
        run=run,
        parts=parts,
        tokens=tokens,
        runtime=runtime,
        horizon=_horizon(settings, tokens, time.monotonic() - began, step_seconds).of_generation(
            state, settings.train.generations
        ),
        emit=emit,
        stop=stop,
        clock=RunClock(state.elapsed_seconds, lambda seconds: emit(_slept(seconds))),
        battery=BatteryWatch() if settings.runtime.pause_on_battery and world.is_main else None,
        state=state,
        complete=complete,
        world=world,
        own_states=own_states,
    )


def _own_checkpoint(
    checkpoint: Checkpoint, own_states: OwnStates | None, world: World, emit: Listener
) -> Checkpoint:
    """Return the checkpoint with this process's own states of the optimizers, if they are there."""
    if own_states is None:
        return checkpoint
    own = checkpoint if world.is_main else own_states.of(checkpoint)
    found = world.gather(own is not None)
    if missing := [world.named(rank) for rank, one in enumerate(found) if not one]:
        emit(Notice(level="info", message=without_own_states(missing)))
    return states_of_main(checkpoint) if own is None else own


def _horizon(settings: Settings, tokens: TokenFolder, seconds_gone: float, step_seconds: float) -> Horizon:
    """Return the horizon; a horizon in time reserves the seconds of a last validation.

    A validation's forward pass is estimated to take a third of a training pass.
    """
    batches = len(ValidationBatches(settings, tokens))
    reserve = batches_computed(settings, batches) * step_seconds / settings.train.grad_accum_steps / 3
    horizon = horizon_of(settings, tokens_per_epoch(settings, tokens), seconds_gone)
    return replace(horizon, reserve_seconds=reserve)


def _slept(seconds: float) -> Notice:
    return Notice(
        level="info",
        message=f"the machine slept, or this process was paused, for {format_duration(seconds)}; "
        "that time does not count",
    )


def _require_same_data(checkpoint: Checkpoint, tokens: TokenFolder) -> None:
    if checkpoint.vocab_size != tokens.vocab_size or checkpoint.data.get("digest") != tokens.digest:
        raise DataError(
            f"the training data at {tokens.path} is not the data that the checkpoint was trained on",
            "bring back the same files, or start a new run",
        )
