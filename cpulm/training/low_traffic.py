"""Where the processes of a run meet: at every update, or, with low traffic, at the borders of rounds.

Between two borders of ``distributed.mode: diloco`` nothing is exchanged. What has to be decided together
waits for the next border, at which all processes have the same weights: a stop, a validation, a checkpoint,
going back after a divergence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cpulm.cache_dir import cache_folder
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.distributed.rounds import OwnRows
from cpulm.distributed.world import SOLO, World
from cpulm.errors import DataError, ResourceError
from cpulm.optim.outer import OuterStep


@dataclass
class Rounds:
    """The rounds of a run; without ``outer`` and ``rows`` each update is one.

    Attributes:
        every: updates between two borders.
        last: the generation's last update, which ends a round too; None if that is not known.
        problem: why this process would go back to a checkpoint at the next border; None: nothing.
    """

    world: World = SOLO
    every: int = 1
    last: int | None = None
    outer: OuterStep | None = None
    rows: OwnRows | None = None
    problem: str | None = None

    @property
    def are_long(self) -> bool:
        """Whether a process does updates by itself."""
        return self.outer is not None

    def is_border(self, done: int) -> bool:
        """Whether the processes meet after ``done`` updates of the generation."""
        return done % self.every == 0 or done == self.last

    def any_due(self, is_due: Callable[[int], bool], done: int) -> bool:
        """Whether ``is_due`` for one of the updates of the round that ended after ``done``."""
        return any(is_due(step) for step in range(done - (done - 1) % self.every, done + 1))

    def after_update(self, problem: str | None, done: int, seconds: float) -> str | None:
        """Average the processes' changes of the weights if a round has ended.

        Args:
            problem: of this process's update, in words.
            done: updates of the generation, with the last one.
            seconds: of that update.

        Returns:
            A problem because of which all processes go back to a checkpoint.
        """
        if self.outer is None or self.rows is None:
            return problem
        self.world.check()
        self.rows.note(seconds)
        self.problem = self.problem or problem
        if not self.is_border(done):
            return None
        found, self.problem = self.problem, None
        if self.world.agree(found is not None)[0]:
            return found or "another process of the run diverged"
        self.outer.end_round(self.rows.part)
        self.rows.divide()
        return None


class OwnStates:
    """The optimizers' states of a process that is not the main one, in files on its own machine.

    With low traffic they differ between the processes, and the checkpoint has those of the main one, which is
    written after all have kept theirs. Two are kept, because the main process may end before it has.

    Args:
        run: the path of the run's folder on the main process's machine.
    """

    def __init__(self, world: World, run: str) -> None:
        key = hashlib.blake2b(f"{world.hosts[0]} {run}".encode(), digest_size=12).hexdigest()
        self._world, folder = world, cache_folder() / "processes" / key
        self._newest = folder / f"{world.rank}-of-{world.size}.pt"
        self._before = folder / f"{world.rank}-of-{world.size}-before.pt"

    def keep(self, make: Callable[[], Checkpoint]) -> None:
        """Write what ``make`` returns in place of the older one of two, and return when all processes have.

        A failure to write only makes a resumed run inexact.
        """
        if not self._world.is_main:
            with suppress(OSError, RuntimeError, ResourceError):
                self._newest.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    self._newest.replace(self._before)
                checkpoints.save(make(), self._newest)
        self._world.agree(False)

    def of(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return ``checkpoint`` with the states that this process had then; None if they are not there."""
        for path in (self._newest, self._before):
            own = _loaded(path)
            if own is not None and own.step == checkpoint.step and _same_weights(own, checkpoint):
                return replace(checkpoint, optimizer_states=own.optimizer_states)
        return None


def states_of_main(checkpoint: Checkpoint) -> Checkpoint:
    """Return ``checkpoint`` for a process without states of its own: what the main one has still to send is
    not sent twice."""
    states = [{**one, "state": _without_lost(one["state"])} for one in checkpoint.optimizer_states]
    return replace(checkpoint, optimizer_states=states)


def _without_lost(states: dict[int, dict[str, torch.Tensor]]) -> dict[int, dict[str, torch.Tensor]]:
    return {
        number: {name: value * 0 if name == "lost" else value for name, value in state.items()}
        for number, state in states.items()
    }


def without_own_states(missing: list[str]) -> str:
    """What is said if processes have no states of their own: on a new host, or if there are more."""
    names = ", ".join(missing)
    return f"{names}: optimizers continue from those of the main process; numbers are close, not exact"


def _loaded(path: Path) -> Checkpoint | None:
    try:
        return checkpoints.load(path) if path.is_file() else None
    except DataError:
        return None


def _same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    return one.model_state.keys() == other.model_state.keys() and all(
        torch.equal(one.model_state[name], other.model_state[name]) for name in one.model_state
    )
