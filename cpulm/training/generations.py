"""A run of several trainings, one after the other: each model learns from the text and from the best before.

A generation is a whole training, with new weights, a seed and a learning rate schedule of its own; steps,
tokens and time are counted over the whole run. The border between two is crossed in two steps: the teacher's
weights are written into the run's folder, then the first checkpoint of the new generation. A run that is
killed before the second one continues at the end of the old generation, and crosses the border again with the
same result.
"""

from __future__ import annotations

import time

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.load_model import best_checkpoint
from cpulm.errors import DataError, StoppedError
from cpulm.events import EndReason, GenerationStarted, Notice
from cpulm.training.build import build_parts
from cpulm.training.teaching import keep_teacher
from cpulm.training.trainer import Trainer

ENDS_OF_A_GENERATION: tuple[EndReason, ...] = ("horizon", "patience")
"""The reasons after which the next generation begins; the others end the run."""


def train_generations(trainer: Trainer) -> EndReason:
    """Train the generation that ``trainer`` is in, and those after it.

    Returns:
        The reason why the last one ended.

    Raises:
        DivergedError: as :meth:`Trainer.train`.
        ResourceError: as :meth:`Trainer.train`.
    """
    reason = trainer.train()
    while reason in ENDS_OF_A_GENERATION and _time_is_left(trainer):
        if trainer.stop():
            return "stopped"
        try:
            _begin_next(trainer)
        except StoppedError:
            return "stopped"
        reason = trainer.train()
    return reason


def _time_is_left(trainer: Trainer) -> bool:
    if trainer.state.generation >= trainer.settings.train.generations:
        return False
    return trainer.horizon.progress(trainer.state.step, trainer.clock.elapsed(), time.time()) < 1.0


def _begin_next(trainer: Trainer) -> None:
    """Cross the border to the next generation: new weights, taught by the best model of the run so far."""
    state, settings = trainer.state, trainer.settings
    teacher = _best_so_far(trainer)
    digest = "" if teacher is None else keep_teacher(teacher, trainer.run)
    generation = state.generation + 1
    parts = build_parts(settings, trainer.tokens, trainer.runtime, teacher, generation, world=trainer.world)
    trainer.begin_generation(parts, state.next_generation(digest, trainer.clock.elapsed()))
    trainer.emit(
        GenerationStarted(
            step=state.step,
            generation=generation,
            generations=settings.train.generations,
            seed=parts.loader.seed,
            teacher_step=None if teacher is None else teacher.state.best_step,
            teacher_loss=None if teacher is None else teacher.best_loss,
        )
    )
    trainer.checkpointer.save_last()
    trainer.prepare()


def _best_so_far(trainer: Trainer) -> Checkpoint | None:
    """Read the best model of the run; None, with a warning, if its file is damaged."""

    def warn(message: str) -> None:
        trainer.emit(Notice(level="warning", message=message))

    try:
        return best_checkpoint(trainer.run.path, warn)[0]
    except DataError as error:
        warn(f"{error.message}: the next generation has no teacher")
        return None
