"""What a run does when training diverges: roll back to the last good checkpoint and skip the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.train_state import TrainState
from cpulm.distributed.world import SOLO, World
from cpulm.errors import DataError, DivergedError
from cpulm.events import Listener, Notice, RolledBack
from cpulm.execution.update import TrainingParts
from cpulm.run_dir import RunDir
from cpulm.settings import TrainSettings


def roll_back(
    problem: str,
    last: int,
    state: TrainState,
    parts: TrainingParts,
    run: RunDir,
    train: TrainSettings,
    emit: Listener,
    world: World = SOLO,
) -> TrainState:
    """Restore ``parts`` from the last checkpoint before the problem, and skip the data that caused it.

    Args:
        problem: the problem in words.
        last: the generation's finished updates before the update in which the problem was noticed.
        state: the state of the run with the problem.
        world: the processes of the run: all go back to the main one's checkpoint.

    Returns:
        The state to continue from.

    Raises:
        DivergedError: after ``train.max_rollbacks`` rollbacks without a new best validation loss, or if no
            earlier checkpoint is left.
    """
    count, limit = state.rollbacks + 1, train.max_rollbacks
    if count > limit:
        raise _diverged(problem, f"after {limit} rollbacks" if limit else "", state, run)
    checkpoint = _last_good(run, state.generation, emit, world)
    if checkpoint is None:
        raise _diverged(problem, "and no earlier checkpoint is left", state, run)
    first = max(0, last + 1 - state.losses.high_updates)
    steps = range(first, last + 1)
    batches = sorted(
        {batch for step in steps for batch in update_batches(step, train.grad_accum_steps, state.skipped)}
    )
    checkpoints.restore(checkpoint, parts.model, parts.optimizers, parts.average)
    restored = checkpoint.state
    restored.keep_best(state)
    restored.skipped = sorted({*state.skipped, *batches})
    restored.saves, restored.rollbacks = state.saves, count
    emit(
        RolledBack(
            step=state.step,
            to_step=restored.step,
            reason=problem,
            skipped_batches=tuple(batches),
            count=count,
            limit=limit,
        )
    )
    return restored


def update_batches(step: int, grad_accum_steps: int, skipped: Sequence[int]) -> list[int]:
    """Return the loader's indices of the micro-batches of the update after ``step`` of a generation."""
    first = step * grad_accum_steps
    return [unskipped_batch(index, skipped) for index in range(first, first + grad_accum_steps)]


def unskipped_batch(index: int, skipped: Sequence[int]) -> int:
    """Return the loader's index of batch number ``index`` among the batches that are not skipped.

    Args:
        skipped: the loader's indices of the skipped batches, ascending.
    """
    for batch in skipped:
        if batch > index:
            break
        index += 1
    return index


def _last_good(run: RunDir, generation: int, emit: Listener, world: World = SOLO) -> Checkpoint | None:
    """Return the generation's newest undamaged checkpoint that was not written during a spike."""
    found = _last_good_here(run, generation, emit) if world.is_main else None
    if not world.share(found is not None):
        return None
    world.share_file(None if found is None else found[0], run.latest)
    return checkpoints.load(run.latest) if found is None else found[1]


def _last_good_here(run: RunDir, generation: int, emit: Listener) -> tuple[Path, Checkpoint] | None:
    for path in run.checkpoints():
        try:
            checkpoint = checkpoints.load(path)
        except DataError as error:
            emit(Notice(level="warning", message=error.message))
            continue
        if checkpoint.state.generation == generation and not checkpoint.state.losses.high_updates:
            return path, checkpoint
    return None


def _diverged(problem: str, when: str, state: TrainState, run: RunDir) -> DivergedError:
    kept = run.checkpoints()
    where = f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint is left"
    step = f"step {state.step + 1}{f' {when}' if when else ''}"
    return DivergedError(
        f"training diverged in {step}: {problem}; {where}",
        "lower train.lr (and train.muon_lr), or lengthen train.warmup_steps",
    )
