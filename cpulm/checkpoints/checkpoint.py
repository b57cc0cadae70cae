"""Reads and writes checkpoint files, from which a run can be continued and its model be used.

The file is the zip archive that ``torch.save`` writes, with its own BLAKE2b digest as the archive's comment.
Other tools can open it, and damage is noticed before anything is read from it. It is always read with
``weights_only=True``: no code in a checkpoint is ever executed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from cpulm import __version__
from cpulm.address_space import more_memory
from cpulm.atomic import replacing
from cpulm.checkpoints.seal import REMEDY, check_seal, not_ours, seal
from cpulm.checkpoints.stored_facts import StoredData, StoredRuntime
from cpulm.checkpoints.train_state import TrainState, from_stored, to_stored
from cpulm.errors import DataError, ResourceError, SettingsError, out_of_memory
from cpulm.execution.rng import restore_random_states
from cpulm.model.counts import count, count_adapters
from cpulm.optim.restore_state import restore_state
from cpulm.optim.weight_average import WeightAverage
from cpulm.regular_file import open_regular
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import validate
from cpulm.typed_json import from_record, shown

_T = TypeVar("_T")

FORMAT = "cpulm checkpoint"
VERSION = 1
_MOST_SHOWN = 200
_STATE_KEY = "position"
"""The name of ``Checkpoint.state`` in files of format 1."""
_OTHER_KEY = "other_weights"
"""Under ``model`` are the weights to use; here the others: the average, or those it is an average of."""


@dataclass
class Checkpoint:
    """The contents of a checkpoint file.

    Attributes:
        model_state: the weights that training continues from; those of another program's model are read from
            its file when they are asked for. With ``settings.lora`` also the adapters, which are not added to
            the weights: :func:`cpulm.checkpoints.weights_alone.weights_alone` does that.
        average_state: their moving average; empty if the run keeps none.
        starts_documents: whether the end-of-text token begins documents in the training data.
        state: the training state: step, best loss, skipped batches.
        random_state: the state of the default generator (uint8 tensor) by device type.
        runtime: the choices, versions and instruction sets that the bits of a resumed run depend on, see
            :meth:`cpulm.execution.runtime.Runtime.facts`.
        data: the path and digest of the token folder, and its ``columns``.
    """

    settings: Settings
    tokenizer_json: str
    vocab_size: int
    starts_documents: bool
    model_state: Mapping[str, Tensor]
    average_state: dict[str, Tensor] = field(default_factory=dict)
    optimizer_states: list[dict[str, Any]] = field(default_factory=list)
    state: TrainState = field(default_factory=TrainState)
    random_state: dict[str, Tensor] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights to use: the better ones at the last validation."""
        return self.average_state if self.average_state and self.state.average_is_better else self.model_state

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def best_loss(self) -> float | None:
        return self.state.best_loss


def save(checkpoint: Checkpoint, path: Path) -> int:
    """Write ``checkpoint`` to ``path``, completely or not at all, flushed to the disk.

    Returns:
        The file's size in bytes.

    Raises:
        ResourceError: if the disk is full; the file that was at ``path`` is kept.
    """
    record = {
        "format": FORMAT,
        "version": VERSION,
        "cpulm": __version__,
        "settings": checkpoint.settings.model_dump(mode="json"),
        "tokenizer": checkpoint.tokenizer_json,
        "vocab_size": checkpoint.vocab_size,
        "starts_documents": checkpoint.starts_documents,
        # "model" is what other programs find in the file. Training continues from the other weights, if any.
        "model": checkpoint.weights,
        _OTHER_KEY: _others(checkpoint),
        "optimizers": checkpoint.optimizer_states,
        _STATE_KEY: to_stored(checkpoint.state),
        "random": checkpoint.random_state,
        "runtime": checkpoint.runtime,
        "data": checkpoint.data,
    }
    with replacing(path) as file:
        _save_tensors(record, file)
        seal(file)
        return file.tell()


def _others(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """The average, or, if that is the better, the weights it is an average of."""
    used = checkpoint.weights
    return checkpoint.model_state if used is checkpoint.average_state else checkpoint.average_state


def _save_tensors(record: dict[str, Any], file: IO[bytes]) -> None:
    """``torch.save``, whose RuntimeError hides why the file could not be written: that error is raised."""
    target = _Remembering(file)
    try:
        torch.save(record, cast(IO[bytes], target))
    except RuntimeError as error:
        raise target.problem or error from error


class _Remembering:
    """Writes to ``file`` and remembers the first error; later writes are dropped, as nothing can follow."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.problem: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.problem is None:
            try:
                return self._file.write(data)
            except OSError as error:
                self.problem = error
        raise self.problem

    def flush(self) -> None:
        self._file.flush()


def load(path: Path, *, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint, on the CPU.

    Args:
        mapped: leave the tensors in the file, for a reader of the other values; it stays open with them.

    Raises:
        DataError: if the file does not exist, is damaged, or is not a cpulm checkpoint.
        ResourceError: if memory runs out.
    """
    check_seal(path)
    try:
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many classes for files that are not its own
        if why := out_of_memory(error):
            raise ResourceError(f"out of memory while reading {path}: {why}", more_memory()) from error
        raise not_ours(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise not_ours(path, "it has other contents")
    if record.get("version") != VERSION:
        raise DataError(
            f"{path} has checkpoint format {shown(record.get('version'))}; this cpulm reads format {VERSION}",
            f"use the cpulm that wrote it ({shown(record.get('cpulm'))})",
        )
    try:
        _require_plain_tensors(record)
        return _checkpoint(record)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, SettingsError) as error:
        raise not_ours(path, f"a part is missing or wrong: {str(error)[:_MOST_SHOWN]}") from error


def _require_plain_tensors(record: dict[str, Any]) -> None:
    """Refuse tensors that are not what :func:`save` writes: kernels read and write them by address.

    Each is dense, contiguous and alone in a memory of exactly its size, wherever in ``record`` it is.

    Raises:
        ValueError: if one is not.
    """
    seen: set[int] = set()
    memories: set[int] = set()
    left: list[Any] = [record]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            _require_plain(value, memories)
        if id(value) in seen:  # a list may hold itself, or one other list a thousand times
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value


def _require_plain(value: Tensor, memories: set[int]) -> None:
    if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu":
        raise ValueError("a tensor is not a dense one on the CPU")
    if value.is_conj() or value.is_neg() or value.is_quantized or value.requires_grad:
        raise ValueError("a tensor is a view or quantized")
    memory = value.untyped_storage()
    if not value.is_contiguous() or memory.nbytes() != value.numel() * value.element_size():
        raise ValueError(f"a tensor of {list(value.shape)} does not fill its memory")
    if value.numel() and memory.data_ptr() in memories:
        raise ValueError("two tensors share their memory")
    memories.add(memory.data_ptr())


def _checkpoint(record: dict[str, Any]) -> Checkpoint:
    """Check the parts of the file, so that the code that uses them need not."""
    tensors = {"model": record["model"], "other": record.get(_OTHER_KEY, {}), "random": record["random"]}
    if not all(isinstance(value, Tensor) for part in tensors.values() for value in part.values()):
        raise TypeError("model or random")
    used, others = tensors["model"], tensors["other"]
    if not all(value.dtype == torch.float32 for part in (used, others) for value in part.values()):
        raise TypeError("the weights are not float32")
    shapes = [{name: value.shape for name, value in part.items()} for part in (used, others)]
    if others and shapes[0] != shapes[1]:
        raise ValueError("the averaged weights are not those of the model")
    state = from_stored(record[_STATE_KEY])
    average = used if others and state.average_is_better else others
    optimizers = record["optimizers"]
    if not isinstance(optimizers, list) or not all(isinstance(state, dict) for state in optimizers):
        raise TypeError("optimizers")
    return Checkpoint(
        settings=validate(record["settings"]),
        tokenizer_json=_of(str, record, "tokenizer"),
        vocab_size=_of(int, record, "vocab_size"),
        starts_documents=_of(bool, record, "starts_documents"),
        model_state=others if average is used else used,
        average_state=average,
        optimizer_states=optimizers,
        state=state,
        random_state=tensors["random"],
        runtime=from_record(StoredRuntime, record["runtime"]).__dict__,
        data=from_record(StoredData, record["data"]).__dict__,
    )


def _of(kind: type[_T], record: dict[str, Any], name: str) -> _T:
    value = record[name]
    if type(value) is not kind:
        raise TypeError(name)
    return value


def load_newest(paths: list[Path]) -> tuple[Checkpoint, Path, list[str]]:
    """Load the first of ``paths`` that is not damaged.

    Returns:
        The checkpoint, its path, and one line for each damaged file that was skipped.

    Raises:
        DataError: if all are damaged, or there are none.
    """
    damaged: list[DataError] = []
    for path in paths:
        try:
            return load(path), path, [error.message for error in damaged]
        except DataError as error:
            damaged.append(error)
    if not damaged:
        raise DataError("there is no checkpoint yet", "start a new run with `cpulm train`")
    if len(damaged) == 1:
        raise damaged[0]
    raise DataError(
        "; ".join(error.message for error in damaged),
        "every checkpoint is damaged: start a new run with `cpulm train`",
    )


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer] | None = None,
    average: WeightAverage | None = None,
) -> None:
    """Restore weights, their average, optimizer states and random states from ``checkpoint``.

    What the settings say, such as the rates and betas of ``optimizers``, stays as it was built from them.

    Args:
        optimizers: None for the weights to use alone; else the model continues its training.
        average: None if the run keeps none.

    Raises:
        DataError: if its parts do not fit each other.
    """
    try:
        if optimizers is None:
            copy_weights(checkpoint.weights, model)
            return
        if not checkpoint.optimizer_states:
            raise DataError(
                "the checkpoint has the weights alone, without the states that training continues from",
                "a finished run whose optimizer states were pruned cannot be trained any longer",
            )
        model.load_state_dict(checkpoint.model_state)
        if average is not None:
            average.load_state_dict(checkpoint.average_state)
        for optimizer, state in zip(optimizers, checkpoint.optimizer_states, strict=True):
            restore_state(optimizer, state)
        restore_random_states(checkpoint.random_state)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        # torch says what it did in the first line, and in the next one what does not fit
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        raise no_fit(lines[:2][-1][:_MOST_SHOWN]) from error


@torch.no_grad()
def copy_weights(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy ``weights`` into ``model``, one after the other.

    Raises:
        ValueError: if they are not those of the model.
    """
    own = model.state_dict()
    if own.keys() != weights.keys():
        raise ValueError(f"weights are missing or left over: {sorted(own.keys() ^ weights.keys())[0]}")
    for name, target in own.items():
        weight = weights[name]
        if weight.shape != target.shape:
            raise ValueError(f"{name} is {list(weight.shape)} instead of {list(target.shape)}")
        target.copy_(weight)


def require_fit(checkpoint: Checkpoint) -> None:
    """Compare the number of weights with the settings, before a model of that size is built.

    Raises:
        DataError: if they differ.
    """
    if checkpoint.vocab_size < 1:
        raise no_fit(f"its vocabulary has {checkpoint.vocab_size} entries")
    weights = sum(value.numel() for value in checkpoint.model_state.values())
    settings = checkpoint.settings
    expected = count(settings.model, checkpoint.vocab_size).total
    expected += count_adapters(settings.model, settings.lora)
    if weights != expected:
        raise no_fit(f"it has {weights:,} weights, and its settings make {expected:,}")


def no_fit(why: str) -> DataError:
    """The error for a checkpoint whose parts do not belong together."""
    return DataError(f"the parts of the checkpoint do not fit each other: {why}", REMEDY)


def duplicate(path: Path, other: Path) -> None:
    """Copy the file at ``path`` to ``other``: on blocks of its own, so that a bad one damages one file."""
    with open_regular(path) as source, replacing(other) as target:
        shutil.copyfileobj(source, target, 1 << 20)
