"""Writes token folders to disk, whole or not at all, in constant memory."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cpulm import __version__
from cpulm.atomic import flush_folder, flush_to_disk
from cpulm.data.marked_text import LossMask, counted_bytes, pack
from cpulm.data.marks import Mark
from cpulm.data.pretoken_cache import Ids
from cpulm.data.tokenfile import FORMAT_VERSION, META, SPLITS, TOKENIZER, digest_of, dtype_for
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError, ResourceError


class _File:
    """A file being written, and its digest."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hasher = hashlib.blake2b(digest_size=16)

    def write(self, data: bytes) -> None:
        self._hasher.update(data)
        self._file.write(data)

    def finish(self) -> str:
        """Flush everything to disk; return the digest."""
        flush_to_disk(self._file)
        self._file.close()
        return self._hasher.hexdigest()

    def close(self) -> None:
        """Close the file; what could not be written was an error before, and closing tries it again."""
        with suppress(OSError):
            self._file.close()


class _MaskWriter:
    """Writes which tokens count in the loss, a bit for each, and counts these tokens and their text."""

    def __init__(self, path: Path, eot_id: int) -> None:
        self.file = _File(path)
        self.tokens = self.text_bytes = 0
        self._mask = LossMask(eot_id)
        self._rest = np.zeros(0, dtype=bool)

    def take(self, ids: Ids) -> Ids:
        """Write the bits of ``ids``; return those of tokens."""
        ids, counts = self._mask.take(ids)
        self.tokens += int(counts.sum())
        bits = np.concatenate([self._rest, counts])
        whole = len(bits) // 8 * 8
        self.file.write(pack(bits[:whole]))
        self._rest = bits[whole:]
        return ids

    def finish(self) -> dict[str, Any]:
        self.file.write(pack(self._rest))
        return {
            "counted_tokens": self.tokens,
            "counted_bytes": self.text_bytes,
            "mask_blake2b": self.file.finish(),
        }


class SplitWriter:
    """Writes one ``.bin`` file, and its mask if there is one; collects its part of ``meta.json``."""

    def __init__(self, path: Path, dtype: np.dtype[Any], mask: _MaskWriter | None) -> None:
        self.documents = 0
        self.text_bytes = 0
        self.tokens = 0
        self.lost_bytes = 0
        self._file = _File(path)
        self._mask = mask
        self._dtype = dtype
        self._document = -1

    def note(self, document: int, text: str, marks: tuple[Mark, ...] = ()) -> None:
        """Count ``text``, which belongs to document number ``document``."""
        self.documents += document != self._document
        self._document = document
        self.text_bytes += len(text) if text.isascii() else len(text.encode())
        if self._mask is not None:
            self._mask.text_bytes += counted_bytes(text, marks)

    def write(self, ids: Ids, lost_bytes: int = 0) -> None:
        """Append tokens and take out marks; ``lost_bytes`` of their text they do not give back."""
        self.lost_bytes += lost_bytes
        if self._mask is not None:
            ids = self._mask.take(ids)
        self._file.write(ids.astype(self._dtype).tobytes())
        self.tokens += len(ids)

    def finish(self) -> dict[str, Any]:
        """Flush everything to disk; return the split's part of ``meta.json``."""
        return {
            "documents": self.documents,
            "bytes": self.text_bytes,
            "tokens": self.tokens,
            "lost_bytes": self.lost_bytes,
            "bytes_per_token": self.text_bytes / max(1, self.tokens),
            "blake2b": self._file.finish(),
            **(self._mask.finish() if self._mask is not None else {}),
        }

    def close(self) -> None:
        self._file.close()
        if self._mask is not None:
            self._mask.file.close()


class FolderWriter:
    """A token folder being written: a hidden sibling of ``target`` until :meth:`finish`.

    Args:
        masks_loss: whether to write which tokens count in the loss.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, *, masks_loss: bool = False) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        dtype = dtype_for(tokenizer.vocab_size)

        def writer(split: str) -> SplitWriter:
            mask = _MaskWriter(folder / f"{split}.mask", tokenizer.eot_id) if masks_loss else None
            return SplitWriter(folder / f"{split}.bin", dtype, mask)

        self.splits = {split: writer(split) for split in SPLITS}

    def finish(self, facts: dict[str, Any]) -> None:
        """Write ``tokenizer.json`` and ``meta.json``, the latter including ``facts``.

        Raises:
            DataError: if a split has fewer than two tokens, or no text.
        """
        splits = {split: writer.finish() for split, writer in self.splits.items()}
        for split, part in splits.items():
            if part["tokens"] < 2 or not part["bytes"]:
                name = {"val": "validation"}.get(split, "training")
                what = f"{part['tokens']} tokens for {part['bytes']} bytes of text"
                raise DataError(f"the {name} split has {what}: too little", "give more text")
            if part.get("counted_tokens") == 0:
                raise DataError(f"no token of the {name} split counts in the loss", "change data.loss_after")
        text = self.tokenizer.to_json()
        meta = {
            "format_version": FORMAT_VERSION,
            "cpulm_version": __version__,
            "tokenizer": self.tokenizer.kind,
            "tokenizer_blake2b": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            "vocab_size": self.tokenizer.vocab_size,
            "eot_id": self.tokenizer.eot_id,
            "dtype": dtype_for(self.tokenizer.vocab_size).name,
            **splits,
            **facts,
        }
        meta["blake2b"] = digest_of(meta)
        # In ASCII, because a file's name may hold what no encoding writes and reads back as it was.
        for name, content in ((TOKENIZER, text), (META, json.dumps(meta, indent=2))):
            with (self.folder / name).open("wb") as file:
                file.write(content.encode())
                flush_to_disk(file)
        flush_folder(self.folder)

    def close(self) -> None:
        for writer in self.splits.values():
            writer.close()


@contextmanager
def writing_folder(
    target: Path, tokenizer: Tokenizer, *, keep_existing: bool, masks_loss: bool = False
) -> Iterator[FolderWriter]:
    """Yield a writer whose folder is renamed to ``target`` when the block ends without an error.

    Args:
        target: absent, or an empty folder, when the block ends.
        tokenizer: the tokenizer that made the tokens.
        keep_existing: if another process has finished ``target`` meanwhile, keep that one.
        masks_loss: as of :class:`FolderWriter`.

    Raises:
        ResourceError: if the disk is full, or the folder cannot be written.
        DataError: if ``target`` is not empty and ``keep_existing`` is False.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    missing: list[Path] = []
    writer: FolderWriter | None = None
    try:
        with _disk_errors(target):
            missing = [folder for folder in target.parents if not folder.exists()]
            temporary.mkdir(parents=True)
            writer = FolderWriter(temporary, tokenizer, masks_loss=masks_loss)
            yield writer
            writer.close()
            _rename(temporary, target, keep_existing=keep_existing)
    finally:
        if writer is not None:
            writer.close()
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):  # not empty: it holds the target, or another process's work
                folder.rmdir()


def _rename(temporary: Path, target: Path, *, keep_existing: bool) -> None:
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()  # Windows does not rename onto an existing folder, even an empty one
    try:
        temporary.rename(target)
    except OSError as error:
        if not target.exists():
            raise
        if not keep_existing:
            raise DataError(f"{target} is no longer empty", "choose another folder") from error
        return
    flush_folder(target.parent)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Turn errors of the disk into errors with a message and a hint."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"no space left to write tokens to {target}", "free some disk space, or choose another folder"
            ) from error
        raise ResourceError(
            f"cannot write tokens to {target}: {error.strerror or error}", "choose another folder"
        ) from error
