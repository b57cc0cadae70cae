"""A folder of tokens: ``train.bin``, ``val.bin``, ``tokenizer.json`` and ``meta.json``.

If the loss does not count everywhere, ``train.mask`` and ``val.mask`` have a bit for each token that says
whether it counts there, the first in the lowest bit of the first byte.

The two ``.bin`` files are little-endian unsigned integers without a header, 16 bits wide if the
vocabulary allows, else 32. They are read through memory maps, so their size does not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cpulm.data.losses import Losses
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.regular_file import read_regular
from cpulm.typed_json import from_record, parse_json

FORMAT_VERSION = 1
META, TOKENIZER = "meta.json", "tokenizer.json"
SPLITS = ("train", "val")

TokenArray: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
_TOKENS_AT_ONCE = 1 << 22
_MOST_META_BYTES = 1 << 24
_REBUILD_HINT = "build the folder again with `cpulm tokenize`"


class TokenFolder:
    """A prepared token folder, checked and opened by :meth:`open`.

    Attributes:
        path: the folder.
        meta: the content of ``meta.json``.
        tokenizer: the tokenizer that made the tokens.
        train: the training tokens, a memory map, uint16 or uint32.
        val: the validation tokens, likewise.
        train_mask: bits of the training tokens that count in the loss, uint8; None: all count.
        val_mask: of the validation tokens, likewise.
    """

    def __init__(self, path: Path, meta: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.path = path
        self.meta = meta
        self.tokenizer = tokenizer
        self.train = _open_memmap(path, meta, "train")
        self.val = _open_memmap(path, meta, "val")
        self.train_mask = _open_mask(path, meta, "train")
        self.val_mask = _open_mask(path, meta, "val")

    @classmethod
    def open(cls, path: Path | str) -> TokenFolder:
        """Open a token folder; check lengths and dtype, but not digests (:meth:`verify` does).

        Raises:
            DataError: if a file is absent, cut short, or does not fit the others.
        """
        folder = Path(path)
        meta = read_meta(folder)
        tokenizer = Tokenizer.from_file(folder / TOKENIZER)
        if tokenizer.vocab_size != meta["vocab_size"] or tokenizer.eot_id != meta["eot_id"]:
            raise DataError(
                f"{folder}: {TOKENIZER} has {tokenizer.vocab_size} tokens, {META} says {meta['vocab_size']}",
                _REBUILD_HINT,
            )
        return cls(folder, meta, tokenizer)

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return int(self.meta["vocab_size"])

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the validation text per validation token, end-of-text tokens included; only of what
        counts in the loss."""
        val = self.meta["val"]
        if self.val_mask is not None:
            return float(val["counted_bytes"] / val["counted_tokens"])
        return float(val["bytes_per_token"])

    @property
    def columns(self) -> dict[str, dict[str, int]]:
        """How often each value of a template's columns is in the training split, the most frequent first."""
        return dict(self.meta.get("columns", {}))

    @property
    def lost_share(self) -> float:
        """The share of the validation text, in bytes, that its tokens do not give back; 0 if unknown."""
        val = self.meta["val"]
        return float(val.get("lost_bytes", 0) / max(1, val["bytes"]))

    @property
    def lost_in_reading(self) -> Losses:
        """What was lost when the text was read."""
        return from_record(Losses, self.meta.get("lost_in_reading", {}))

    @property
    def train_documents(self) -> int:
        """Documents that are at least partly in the training split."""
        return int(self.meta["train"]["documents"])

    def separates_documents(self) -> bool:
        """Whether an end-of-text token stands before another token in the training split.

        Reads up to the first one. There is none if the text is a single document.
        """
        inside, eot_id = self.train[:-1], self.tokenizer.eot_id
        parts = (inside[at : at + _TOKENS_AT_ONCE] for at in range(0, len(inside), _TOKENS_AT_ONCE))
        return any(bool((part == eot_id).any()) for part in parts)

    @cached_property
    def digest(self) -> str:
        """The digest of the tokens and the tokenizer: equal digests mean equal training data."""
        parts = [self.meta["train"]["blake2b"], self.meta["val"]["blake2b"], self.meta["tokenizer_blake2b"]]
        parts += [self.meta[split]["mask_blake2b"] for split in SPLITS if _has_mask(self.meta, split)]
        return hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of the files that :meth:`verify` reads."""
        return sum((self.path / name).stat().st_size for name in self._digests())

    def verify(self, advance: Callable[[float], None] = lambda _: None) -> None:
        """Read every byte, compare the digests, and hold the tokens against the vocabulary.

        Args:
            advance: called with the bytes of each part read; an exception that it raises ends the reading.

        Raises:
            DataError: naming the file whose content has changed or cannot be.
        """
        dtype = dtype_for(self.vocab_size)
        for name, digest in self._digests().items():
            hasher = hashlib.blake2b(digest_size=16)
            with (self.path / name).open("rb") as file:
                while chunk := file.read(1 << 22):
                    hasher.update(chunk)
                    if name.endswith(".bin") and _largest(chunk, dtype) >= self.vocab_size:
                        raise DataError(
                            f"{self.path / name} has tokens beyond its vocabulary of {self.vocab_size:,}",
                            _REBUILD_HINT,
                        )
                    advance(len(chunk))
            if hasher.hexdigest() != digest:
                raise DataError(
                    f"{self.path / name} is damaged: its digest differs from {META}", _REBUILD_HINT
                )

    def _digests(self) -> dict[str, str]:
        """The expected digest of each file, by name."""
        digests = {f"{split}.bin": str(self.meta[split]["blake2b"]) for split in SPLITS}
        for split in SPLITS:
            if _has_mask(self.meta, split):
                digests[f"{split}.mask"] = str(self.meta[split]["mask_blake2b"])
        return {**digests, TOKENIZER: str(self.meta["tokenizer_blake2b"])}


def is_token_folder(path: Path) -> bool:
    """Whether ``path`` looks like a folder that ``cpulm tokenize`` wrote, intact or damaged.

    False if it may not be entered: what is wrong with it is said when it is read.
    """
    try:
        has_tokens = any((path / f"{split}.bin").is_file() for split in SPLITS)
        return has_tokens and any((path / name).is_file() for name in (META, TOKENIZER))
    except OSError:
        return False


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Little-endian uint16 up to 65,536 tokens, uint32 above."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def require_block(split: str, n_tokens: int, block_size: int) -> None:
    """Refuse a split that does not hold one block and the token after it.

    Raises:
        SettingsError: naming the block size, the tokens in the split and the largest block that fits.
    """
    if n_tokens > block_size:
        return
    name = {"val": "validation"}.get(split, "training")
    fits = n_tokens - 1
    more = "give more text"
    if split == "val":
        more = "hold out more (--val-fraction, data.val_fraction), or give a validation text: --val-data"
    remedy = f"--set model.block_size={fits} or less; or {more}" if fits >= 2 else more
    raise SettingsError(
        f"block_size is {block_size}, but the {name} split has {n_tokens} tokens:"
        f" the largest block_size that fits is {max(fits, 0)}",
        remedy,
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """Read and check ``meta.json``.

    Raises:
        DataError: if it is absent, unreadable, of a newer version or incomplete.
    """
    path = folder / META
    try:
        # A source's name may hold bytes that are not UTF-8; they are kept as they are.
        meta = parse_json(read_regular(path, _MOST_META_BYTES).decode("utf-8", "surrogateescape"))
    except FileNotFoundError as error:
        raise DataError(f"{folder} is not a token folder: it has no {META}", _REBUILD_HINT) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", _REBUILD_HINT) from error
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version!r}, this cpulm reads {FORMAT_VERSION}", _REBUILD_HINT
        )
    try:
        _check(from_record(_Meta, meta))
    except ValueError as error:
        raise DataError(f"{path}: {error}", _REBUILD_HINT) from error
    # Folders written by versions without this digest remain valid.
    if meta.get("blake2b", digest_of(meta)) != digest_of(meta):
        raise DataError(f"{path} is damaged: its digest does not fit its contents", _REBUILD_HINT)
    return dict(meta)


def digest_of(meta: dict[str, Any]) -> str:
    """The digest of ``meta.json`` without its own entry, so that one changed figure is noticed."""
    content = json.dumps({key: value for key, value in meta.items() if key != "blake2b"}, sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


@dataclass
class _SplitMeta:
    """What ``meta.json`` says of a split, as far as this version reads it."""

    documents: int
    bytes: int
    tokens: int
    bytes_per_token: float
    blake2b: str
    lost_bytes: int = 0
    counted_tokens: int = 0
    counted_bytes: int = 0
    mask_blake2b: str = ""


@dataclass
class _Meta:
    """What ``meta.json`` says; folders of earlier versions lack the values with a default."""

    vocab_size: int
    eot_id: int
    dtype: str
    tokenizer_blake2b: str
    train: _SplitMeta
    val: _SplitMeta
    tokenizer: str = ""
    source: list[str] = field(default_factory=list)
    ends_held_out: int | None = None
    lost_in_reading: Losses = field(default_factory=Losses)
    columns: dict[str, dict[str, int]] = field(default_factory=dict)


def _check(meta: _Meta) -> None:
    """Raise ValueError for values of the right types that cannot be."""
    if not 0 <= meta.eot_id < meta.vocab_size or meta.dtype != dtype_for(meta.vocab_size).name:
        raise ValueError("vocab_size, eot_id and dtype do not fit each other")
    for split in (meta.train, meta.val):
        counts = (split.documents, split.bytes, split.tokens, split.lost_bytes)
        if min(counts) < 0 or not split.bytes_per_token > 0 or split.lost_bytes > split.bytes:
            raise ValueError("documents, bytes, tokens and bytes_per_token do not fit each other")
        if split.mask_blake2b and not 0 < split.counted_tokens <= split.tokens:
            raise ValueError("tokens and counted_tokens do not fit each other")


def _largest(data: bytes, dtype: np.dtype[Any]) -> int:
    whole = len(data) // dtype.itemsize
    return int(np.frombuffer(data, dtype, whole).max(initial=0))


def _open_memmap(folder: Path, meta: dict[str, Any], split: str) -> np.memmap[Any, Any]:
    dtype = dtype_for(meta["vocab_size"])
    return _mapped(folder / f"{split}.bin", dtype, meta[split]["tokens"])


def _open_mask(folder: Path, meta: dict[str, Any], split: str) -> np.memmap[Any, Any] | None:
    if not _has_mask(meta, split):
        return None
    return _mapped(folder / f"{split}.mask", np.dtype(np.uint8), -(-meta[split]["tokens"] // 8))


def _has_mask(meta: dict[str, Any], split: str) -> bool:
    return bool(meta[split].get("mask_blake2b"))


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> np.memmap[Any, Any]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} is missing", _REBUILD_HINT) from error
    if size != count * dtype.itemsize or not count:
        state = "cut short" if size < count * dtype.itemsize else "not the file that was written"
        raise DataError(
            f"{path} is {state}: it has {size:,} bytes, {META} says {count * dtype.itemsize:,}",
            _REBUILD_HINT,
        )
    return np.memmap(path, dtype=dtype, mode="r")
