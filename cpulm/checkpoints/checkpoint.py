"""Reads and writes checkpoint files, from which a run can be continued and its model be used.

The file is the zip archive that ``torch.save`` writes, with its own BLAKE2b digest as the archive's comment.
Other tools can open it, and damage is noticed before anything is read from it. It is always read with
``weights_only=True``: no code in a checkpoint is ever executed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from cpulm import __version__
from cpulm.atomic import replacing
from cpulm.checkpoints.train_state import TrainState, from_stored, to_stored
from cpulm.errors import DataError, ResourceError, SettingsError, out_of_memory
from cpulm.execution.rng import restore_random_states
from cpulm.model.counts import count
from cpulm.optim.restore_state import restore_state
from cpulm.regular_file import open_regular
from cpulm.settings import Settings
from cpulm.settings_resolver import validate
from cpulm.typed_json import from_record, shown

_T = TypeVar("_T")

FORMAT = "cpulm checkpoint"
VERSION = 1
_STATE_KEY = "position"
"""The name of ``Checkpoint.state`` in files of format 1."""
_COMMENT = b"cpulm-blake2b:"
_COMMENT_LENGTH = len(_COMMENT) + 64
_END_RECORD = b"PK\x05\x06"
_END_RECORD_LENGTH = 22


@dataclass
class Checkpoint:
    """The contents of a checkpoint file.

    Attributes:
        starts_documents: whether the end-of-text token begins documents in the training data.
        state: the training state: step, best loss, skipped batches.
        random_state: the state of the default generator (uint8 tensor) by device type.
        runtime: the choices, versions and instruction sets that the bits of a resumed run depend on, see
            :meth:`cpulm.execution.runtime.Runtime.facts`.
        data: the path and digest of the token folder.
    """

    settings: Settings
    tokenizer_json: str
    vocab_size: int
    starts_documents: bool
    model_state: dict[str, Tensor]
    optimizer_states: list[dict[str, Any]] = field(default_factory=list)
    state: TrainState = field(default_factory=TrainState)
    random_state: dict[str, Tensor] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)

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
        "model": checkpoint.model_state,
        "optimizers": checkpoint.optimizer_states,
        _STATE_KEY: to_stored(checkpoint.state),
        "random": checkpoint.random_state,
        "runtime": checkpoint.runtime,
        "data": checkpoint.data,
    }
    with replacing(path) as file:
        _save_tensors(record, file)
        _seal(file)
        return file.tell()


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
    _check_seal(path)
    try:
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many classes for files that are not its own
        if why := out_of_memory(error):
            raise ResourceError(
                f"out of memory while reading {path}: {why}", "close other programs"
            ) from error
        raise _not_ours(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _not_ours(path, "it has other contents")
    if record.get("version") != VERSION:
        raise DataError(
            f"{path} has checkpoint format {shown(record.get('version'))}; this cpulm reads format {VERSION}",
            f"use the cpulm that wrote it ({shown(record.get('cpulm'))})",
        )
    try:
        _require_plain_tensors(record)
        return _checkpoint(record)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, SettingsError) as error:
        raise _not_ours(path, f"a part is missing or wrong: {error}") from error


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
    tensors = {"model": record["model"], "random": record["random"]}
    if not all(isinstance(value, Tensor) for part in tensors.values() for value in part.values()):
        raise TypeError("model or random")
    if not all(value.dtype == torch.float32 for value in tensors["model"].values()):
        raise TypeError("the weights are not float32")
    optimizers = record["optimizers"]
    if not isinstance(optimizers, list) or not all(isinstance(state, dict) for state in optimizers):
        raise TypeError("optimizers")
    return Checkpoint(
        settings=validate(record["settings"]),
        tokenizer_json=_of(str, record, "tokenizer"),
        vocab_size=_of(int, record, "vocab_size"),
        starts_documents=_of(bool, record, "starts_documents"),
        model_state=tensors["model"],
        optimizer_states=optimizers,
        state=from_stored(record[_STATE_KEY]),
        random_state=tensors["random"],
        runtime=from_record(_Facts, record["runtime"]).__dict__,
        data=from_record(_Data, record["data"]).__dict__,
    )


@dataclass
class _Facts:
    """The values under ``runtime``. The defaults stand for a checkpoint that no run wrote; None stands for a
    value that an earlier version did not record."""

    device: str = ""
    device_name: str | None = None
    threads: int = 1
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    precision_reason: str = ""
    compiled: bool = False
    kernels: bool = False
    cpulm: str | None = None
    torch: str | None = None
    cpu_capability: str | None = None
    instruction_sets: str | None = None
    kernels_compiler: str | None = None
    kernels_key: str | None = None
    math_variables: str | None = None


@dataclass
class _Data:
    """The values under ``data``; empty for a checkpoint that no run wrote."""

    path: str = ""
    digest: str = ""


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
    damaged: list[str] = []
    for path in paths:
        try:
            return load(path), path, damaged
        except DataError as error:
            damaged.append(error.message)
    if not damaged:
        raise DataError("there is no checkpoint yet", "start a new run with `cpulm train`")
    if len(paths) == 1:
        raise DataError(damaged[0], _REMEDY)
    raise DataError("; ".join(damaged), "every checkpoint is damaged: start a new run with `cpulm train`")


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizers: list[torch.optim.Optimizer] | None = None
) -> None:
    """Restore weights, optimizer states and random states from ``checkpoint``.

    What the settings say, such as the rates and betas of ``optimizers``, stays as it was built from them.

    Args:
        optimizers: None for the weights alone.

    Raises:
        DataError: if its parts do not fit each other.
    """
    try:
        model.load_state_dict(checkpoint.model_state)
        if optimizers is None:
            return
        for optimizer, state in zip(optimizers, checkpoint.optimizer_states, strict=True):
            restore_state(optimizer, state)
        restore_random_states(checkpoint.random_state)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise _no_fit(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def require_fit(checkpoint: Checkpoint) -> None:
    """Compare the number of weights with the settings, before a model of that size is built.

    Raises:
        DataError: if they differ.
    """
    if checkpoint.vocab_size < 1:
        raise _no_fit(f"its vocabulary has {checkpoint.vocab_size} entries")
    weights = sum(value.numel() for value in checkpoint.model_state.values())
    expected = count(checkpoint.settings.model, checkpoint.vocab_size).total
    if weights != expected:
        raise _no_fit(f"it has {weights:,} weights, and its settings make {expected:,}")


def _no_fit(why: str) -> DataError:
    return DataError(f"the parts of the checkpoint do not fit each other: {why}", _REMEDY)


def duplicate(path: Path, other: Path) -> None:
    """Copy the file at ``path`` to ``other``: on blocks of its own, so that a bad one damages one file."""
    with open_regular(path) as source, replacing(other) as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _seal(file: IO[bytes]) -> None:
    """Write the digest of the zip archive in ``file`` into its comment; leave the file at its end."""
    end = file.seek(0, os.SEEK_END)
    file.seek(end - _END_RECORD_LENGTH)
    if file.read(4) != _END_RECORD:
        raise AssertionError("torch.save wrote an archive with a comment")
    digest = _digest(file, end - 2)
    file.seek(end - 2)
    file.write(struct.pack("<H", _COMMENT_LENGTH) + _COMMENT + digest)


def _check_seal(path: Path) -> None:
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            if size < _END_RECORD_LENGTH + _COMMENT_LENGTH:
                raise _not_ours(path, f"it has {size} bytes")
            file.seek(size - _COMMENT_LENGTH)
            comment = file.read()
            if not comment.startswith(_COMMENT):
                raise _not_ours(path, "it was cut short, or another program wrote it")
            if _digest(file, size - _COMMENT_LENGTH - 2) != comment[len(_COMMENT) :]:
                raise DataError(f"{path} is damaged: its digest does not match its contents", _REMEDY)
            _check_entries(path, size)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "give a checkpoint such as runs/tiny-1/best.pt") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", _REMEDY) from error


def _check_entries(path: Path, size: int) -> None:
    """Refuse an archive whose parts are compressed or claim more bytes than the file has."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise _not_ours(path, str(error)) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _not_ours(path, "its parts are compressed")
    if sum(entry.file_size for entry in entries) > size:
        raise _not_ours(path, "its parts claim more bytes than the file has")


def _digest(file: IO[bytes], length: int) -> bytes:
    """Return the BLAKE2b-256 digest of the first ``length`` bytes, in hexadecimal."""
    file.seek(0)
    state = hashlib.blake2b(digest_size=32)
    while length > 0:
        chunk = file.read(min(length, 1 << 20))
        if not chunk:
            break
        state.update(chunk)
        length -= len(chunk)
    return state.hexdigest().encode("ascii")


_REMEDY = "use another checkpoint of the run, such as best.pt, latest.pt or step-*.pt"


def _not_ours(path: Path, why: str) -> DataError:
    return DataError(f"{path} is not a cpulm checkpoint: {why}", _REMEDY)
