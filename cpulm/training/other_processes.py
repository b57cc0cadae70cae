"""What the processes of a run do for each other around the training loop."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.train_state import from_stored, to_stored
from cpulm.data.batch_pieces import require_divisible, require_rows
from cpulm.data.tokenfile import TokenFolder
from cpulm.distributed.world import World
from cpulm.errors import CpulmError, DataError, SettingsError
from cpulm.execution.runtime import Runtime
from cpulm.run_dir import RunDir
from cpulm.settings import Settings
from cpulm.typed_json import shown

_OWN_SETTINGS = ("source", "val_source", "tokenizer")
"""Where the text is may differ between machines; whether it is the same, digests tell."""
_FACTS = {
    "torch": "version of torch",
    "device": "device",
    "precision": "precision",
    "compiled": "compilation by torch",
    "kernels": "use of the compiled kernels",
    "cpu_capability": "instruction set that torch uses",
    "instruction_sets": "list of instruction sets",
}
"""The facts of a runtime that decide the bits of an update, in words."""

_T = TypeVar("_T")


def first_here(world: World, work: Callable[[], _T]) -> _T:
    """Return the result of ``work``, which one process of each machine does before the others there.

    What it leaves in a cache is there for them.
    """
    if world.local_rank == 0:
        done = work()
        world.agree(False)
        return done
    world.agree(False)
    return work()


def require_alike(world: World, settings: Settings, tokens: TokenFolder, runtime: Runtime) -> None:
    """Raise an error that names the machine which differs in what all processes must have in common.

    Raises:
        SettingsError: for settings, versions or processors, or if the batch cannot be divided.
        DataError: for the text.
    """
    if world.size == 1:
        return
    train = settings.train
    low_traffic = settings.distributed.mode == "diloco"
    if low_traffic:
        require_rows(train.micro_batch_size * train.grad_accum_steps, world.size)
    else:
        require_divisible(train.micro_batch_size, train.grad_accum_steps, world.size)
    facts = runtime.facts()
    everyone = world.gather(
        {
            # With low traffic all take the same outer steps, whatever their updates were computed with.
            "facts": {} if low_traffic else {name: str(facts[name]) for name in _FACTS},
            "settings": _comparable(settings),
            "data": tokens.digest,
        }
    )
    for rank, one in enumerate(everyone):
        if (problem := _difference(one, everyone[0], world, rank)) is not None:
            raise problem


def _difference(one: Any, main: Any, world: World, rank: int) -> CpulmError | None:
    host, first = world.hosts[rank], world.hosts[0]
    for key in sorted({*one["settings"], *main["settings"]}):
        mine, theirs = one["settings"].get(key), main["settings"].get(key)
        if mine != theirs:
            return SettingsError(
                f"{key} is {shown(mine)} on {host}, and {shown(theirs)} on {first}",
                "give the same command on all hosts",
            )
    for name in one["facts"]:
        words = _FACTS[name]
        if one["facts"][name] != main["facts"][name]:
            return SettingsError(
                f"the {words} on {host} is {one['facts'][name] or 'none'}, and on {first} "
                f"{main['facts'][name] or 'none'}: their results would drift apart",
                "train on machines of one kind, with the same cpulm and torch",
            )
    if one["data"] != main["data"]:
        return DataError(
            f"the training data on {host} is not that on {first}", "copy the same files to all hosts"
        )
    return None


def _comparable(settings: Settings) -> dict[str, Any]:
    """The settings that must be the same in all processes, by dotted key."""
    dumped = settings.model_dump(
        mode="json", include={"model", "data", "train", "lora", "eval", "distributed"}
    )
    return {
        f"{section}.{name}": value
        for section, values in dumped.items()
        for name, value in values.items()
        if not (section == "data" and name in _OWN_SETTINGS)
        and f"{section}.{name}" not in ("train.init_from", "train.teacher", "distributed.processes")
    }


def require_same_weights(world: World, model: nn.Module) -> None:
    """Raise DataError if a process begins with other weights than the main one."""
    if world.size == 1:
        return
    digest = hashlib.blake2b()
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().cpu().numpy().tobytes())
    for rank, one in enumerate(world.gather(digest.hexdigest())):
        if one != digest.hexdigest():
            raise DataError(
                f"the model on {world.hosts[rank]} begins with other weights than that on "
                f"{world.hosts[world.rank]}",
                "give the same model to begin with, or to learn from, on all hosts",
            )


@contextmanager
def scratch_run() -> Iterator[RunDir]:
    """A folder in which a process that is not the main one keeps what that sends, for the block."""
    with tempfile.TemporaryDirectory(prefix="cpulm-", ignore_cleanup_errors=True) as folder:
        run = RunDir(Path(folder) / "run")
        run.path.mkdir()
        yield run


def share_checkpoint(world: World, found: Checkpoint | None, source: Path | None, run: RunDir) -> Checkpoint:
    """Send the main process's checkpoint, read from ``source``, to the others, with the run's teacher."""
    world.share_file(source, run.latest)
    checkpoint = checkpoints.load(run.latest) if found is None else found
    if checkpoint.state.teacher:
        teacher = run.teacher(checkpoint.state.teacher)
        if world.share(teacher.is_file()):
            world.share_file(teacher, teacher)
    return checkpoint


def share_state(world: World, checkpoint: Checkpoint) -> None:
    """Make the training state the main process's in all."""
    checkpoint.state = from_stored(world.share(to_stored(checkpoint.state)))
