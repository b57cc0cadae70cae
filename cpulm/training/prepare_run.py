"""Prepares a run: its data, its runtime, its parts, and what it will need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.training_data import same_tokens
from cpulm.data.packing import require_loss, tokens_per_epoch
from cpulm.data.prepare import prepare_fitting
from cpulm.data.tokenfile import TokenFolder
from cpulm.distributed.world import SOLO, World
from cpulm.errors import DataError, SettingsError, memory_errors
from cpulm.estimate import requirements
from cpulm.estimate.memory import arithmetic_of, expected_arithmetic
from cpulm.estimate.requirements import Requirements
from cpulm.events import Listener, Progress
from cpulm.execution.adaptive_threads import measured_as_in_a_run
from cpulm.execution.compilation import decide_compile
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.step_timing import cached_fp32_peak, measure_step
from cpulm.execution.update import TrainingParts
from cpulm.generation.prompt import encode_prompt
from cpulm.run_dir import RunDir
from cpulm.settings import HORIZONS, Settings
from cpulm.system.allocator import release_memory
from cpulm.system.cpu_use import OthersUse
from cpulm.system.machine import Machine, read_machine, share_of
from cpulm.training.build import build_parts, build_random_parts
from cpulm.training.initial import read_initial, require_fit, require_tokenizer
from cpulm.training.other_processes import (
    first_here,
    require_alike,
)
from cpulm.training.resume_horizon import (
    require_steps,
)
from cpulm.training.resume_runtime import resumed_runtime
from cpulm.training.teaching import (
    kept_teacher,
    teacher_of,
    teacher_shape,
)

_LESS_MEMORY = "lower train.micro_batch_size, model.n_layer or model.n_embd"


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to begin; its folder does not exist yet.

    ``teacher`` has no optimizer states; None if the model learns from the text alone. ``begins_with`` says in
    words what trained model the run begins with; empty if none.
    """

    settings: Settings
    machine: Machine
    runtime: Runtime
    tokens: TokenFolder
    plan: Requirements
    parts: TrainingParts
    teacher: Checkpoint | None = None
    begins_with: str = ""


@memory_errors("while the run is prepared", _LESS_MEMORY)
def prepare_run(
    settings: Settings,
    *,
    show: Listener,
    should_stop: Callable[[], bool],
    block_is_wish: bool = False,
    world: World = SOLO,
) -> PreparedRun:
    """Prepare a run: tokenize its data, choose the runtime, time real updates, estimate its requirements.

    Args:
        block_is_wish: take the largest block size that the text allows, if it is less than the settings'.
        world: the processes that train it together.

    Raises:
        CpulmError: if the run could not begin.
    """
    _require_horizon(settings)
    machine, others = _machine(world), OthersUse(world.others_here())
    choose_runtime(settings.runtime, machine)  # refuses what is not available, before the data is prepared
    initial = None if settings.train.init_from is None else read_initial(settings.train.init_from, show)
    if initial is not None:
        require_fit(initial, settings)
    tokens, settings = first_here(
        world,
        lambda: prepare_fitting(
            settings,
            emit=show,
            should_stop=should_stop,
            block_is_wish=block_is_wish,
            tokenizer=None if initial is None else initial.tokenizer,
        ),
    )
    if initial is not None:
        require_tokenizer(initial, tokens, settings)
    require_loss(settings, tokens)
    try:
        encode_prompt(tokens.tokenizer, settings.sample.prompt, starts_documents=True)
    except DataError as error:
        raise DataError(
            f"sample.prompt: {error.message}",
            "change it (--set sample.prompt=TEXT), or use data.tokenizer=byte",
        ) from error
    teacher = teacher_of(settings, tokens, show)
    shape = teacher_shape(settings, teacher, tokens.vocab_size)
    expected = expected_arithmetic(settings, machine)
    available = requirements.memory_for_run(machine)
    requirements.check_memory(settings, tokens.vocab_size, expected, available, shape)
    runtime = replace(choose_runtime(settings.runtime, machine, settings.model), processes=world.size)
    plan = requirements.estimate_requirements(
        settings, tokens.vocab_size, tokens_per_epoch(settings, tokens), arithmetic_of(runtime), shape
    )
    require_steps(plan, settings)
    require_alike(world, settings, tokens, runtime)
    plan = replace(
        plan,
        step_seconds=_measured_step(settings, tokens, runtime, teacher, show, others, world),
        peak_flops_per_second=_peak(runtime),
    )
    release_memory()
    planned = requirements.nominal_seconds(settings, tokens.vocab_size, plan.steps, runtime.device.type)
    runtime = decide_compile(runtime, settings.runtime.compile, machine, planned)
    parts = build_parts(settings, tokens, runtime, teacher, initial=initial, world=world)
    begins_with = "" if initial is None else initial.described(tokens.tokenizer, settings.lora)
    return PreparedRun(settings, machine, runtime, tokens, plan, parts, teacher, begins_with)


@memory_errors("while the run is prepared", _LESS_MEMORY)
def prepare_resume(
    settings: Settings,
    checkpoint: Checkpoint,
    run: RunDir,
    show: Listener,
    should_stop: Callable[[], bool],
    without_teacher: bool,
    world: World,
) -> PreparedRun:
    """Prepare a resumed run on the same data; its step time is the mean so far."""
    _require_horizon(settings)
    checkpoints.require_fit(checkpoint)
    machine, others = _machine(world), OthersUse(world.others_here())
    runtime = resumed_runtime(checkpoint, machine, world.size)
    arithmetic = arithmetic_of(runtime)
    teacher = kept_teacher(run, checkpoint, show, without=without_teacher)
    shape = teacher_shape(settings, teacher, checkpoint.vocab_size)
    available = requirements.memory_for_run(machine)
    requirements.check_memory(settings, checkpoint.vocab_size, arithmetic, available, shape)
    tokens = first_here(world, lambda: same_tokens(checkpoint, show, should_stop, settings.data))
    require_alike(world, settings, tokens, runtime)
    if checkpoint.step:
        seconds = checkpoint.state.elapsed_seconds / checkpoint.step
    else:
        seconds = _measured_step(settings, tokens, runtime, teacher, show, others, world)
        release_memory()
    plan = replace(
        requirements.estimate_requirements(
            settings, tokens.vocab_size, tokens_per_epoch(settings, tokens), arithmetic, shape
        ),
        step_seconds=seconds,
        peak_flops_per_second=_peak(runtime),
    )
    parts = build_parts(settings, tokens, runtime, teacher, checkpoint.state.generation, world=world)
    return PreparedRun(settings, machine, runtime, tokens, plan, parts, teacher)


def _peak(runtime: Runtime) -> float | None:
    """The rate of a matrix product in all processes together; on other machines it may be another."""
    one = cached_fp32_peak(runtime.device, runtime.threads)
    return None if one is None else one * runtime.processes


def _machine(world: World) -> Machine:
    """Return this process's share of the machine."""
    return share_of(read_machine(), world.local_size, world.others_here())


def _require_horizon(settings: Settings) -> None:
    if all(getattr(settings.train, name) is None for name in HORIZONS):
        raise SettingsError(
            "the run has no horizon", "give --steps, --epochs, --tokens, --max-time or --until, or a --preset"
        )


def _measured_step(
    settings: Settings,
    tokens: TokenFolder,
    runtime: Runtime,
    teacher: Checkpoint | None,
    show: Listener,
    others: OthersUse,
    world: World,
) -> float:
    """Measure the seconds of one update on temporary parts, the mean over the run's generations.

    Args:
        others: what other programs used since the preparation began.
    """
    show(Progress(stage="measuring a step", done=0, total=None, unit="steps"))
    train, later = settings.train, settings.train.generations - 1

    def seconds_of(parts: TrainingParts) -> float:
        if world.size > 1:  # the others take part, and none changes its threads
            return measure_step(parts, runtime, train)
        step = partial(measure_step, parts, runtime, train)
        return measured_as_in_a_run(step, runtime, others=others.newest)

    try:
        seconds = seconds_of(build_parts(settings, tokens, runtime, teacher, world=world))
        if not later:
            return seconds
        with_teacher = build_random_parts(settings, tokens.vocab_size, runtime)
        return (seconds + later * seconds_of(with_teacher)) / (1 + later)
    finally:
        show(Progress(stage="measuring a step", done=3, total=3, unit="steps", finished=True))
