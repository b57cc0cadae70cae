"""Writes token folders to disk, whole or not at all, in constant memory."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cpulm import __version__
from cpulm.atomic import flush_folder, flush_to_disk
from cpulm.data.bpe_encoder import Ids
from cpulm.data.marked_text import LossMask, counted_bytes, pack
from cpulm.data.marks import Mark
from cpulm.data.tokenfile import FORMAT_VERSION, META, SPLITS, TOKENIZER, digest_of, dtype_for
from cpulm.data.tokenizer import Tokenizer
from cpulm.data.unfinished import Unfinished
from cpulm.errors import DataError, ResourceError

_COPIED_BYTES = 1 << 22
_COUNTS = ("documents", "text_bytes", "tokens", "lost_bytes")


class _File:
    """A file being written, and its digest.

    Args:
        kept: what :meth:`state` returned. The file is continued from there; what was written later is
            dropped.

    Raises:
        ValueError: if the file does not contain that any more.
    """

    def __init__(self, path: Path, kept: dict[str, Any] | None = None) -> None:
        self._hasher = hashlib.blake2b(digest_size=16)
        self._size = 0 if kept is None else int(kept["bytes"])
        self._file = path.open("wb" if kept is None else "r+b")
        for begin in range(0, self._size, _COPIED_BYTES):
            self._hasher.update(self._file.read(min(_COPIED_BYTES, self._size - begin)))
        if kept is not None and self._hasher.hexdigest() != kept["blake2b"]:
            self._file.close()
            raise ValueError(f"{path} is not what was written")
        self._file.truncate()

    def write(self, data: bytes) -> None:
        self._hasher.update(data)
        self._file.write(data)
        self._size += len(data)

    def state(self) -> dict[str, Any]:
        """What is written, which is on the disk when this returns."""
        flush_to_disk(self._file)
        return {"bytes": self._size, "blake2b": self._hasher.hexdigest()}

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

    def __init__(self, path: Path, eot_id: int, kept: dict[str, Any] | None = None) -> None:
        found = kept or {"file": None, "tokens": 0, "text_bytes": 0, "counts": True, "rest": []}
        self.file = _File(path, found["file"])
        self.tokens, self.text_bytes = found["tokens"], found["text_bytes"]
        self._mask = LossMask(eot_id)
        self._mask.counts = found["counts"]
        self._rest = np.array(found["rest"], dtype=bool)

    def take(self, ids: Ids) -> Ids:
        """Write the bits of ``ids``; return those of tokens."""
        ids, counts = self._mask.take(ids)
        self.tokens += int(counts.sum())
        bits = np.concatenate([self._rest, counts])
        whole = len(bits) // 8 * 8
        self.file.write(pack(bits[:whole]))
        self._rest = bits[whole:]
        return ids

    def state(self) -> dict[str, Any]:
        return {
            "file": self.file.state(),
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "counts": self._mask.counts,
            "rest": self._rest.tolist(),
        }

    def finish(self) -> dict[str, Any]:
        self.file.write(pack(self._rest))
        return {
            "counted_tokens": self.tokens,
            "counted_bytes": self.text_bytes,
            "mask_blake2b": self.file.finish(),
        }


class SplitWriter:
    """Writes one ``.bin`` file, and its mask if there is one; collects its part of ``meta.json``.

    Args:
        kept: what :meth:`state` gave when the work was left.
    """

    def __init__(
        self, path: Path, tokenizer: Tokenizer, *, masks_loss: bool, kept: dict[str, Any] | None = None
    ) -> None:
        found: dict[str, Any] = kept or dict.fromkeys(_COUNTS, 0) | {
            "document": -1,
            "file": None,
            "mask": None,
        }
        self.documents, self.text_bytes, self.tokens, self.lost_bytes = (found[name] for name in _COUNTS)
        self._document = found["document"]
        self._dtype = dtype_for(tokenizer.vocab_size)
        self._file = _File(path.with_suffix(".bin"), found["file"])
        mask_path = path.with_suffix(".mask")
        self._mask = _MaskWriter(mask_path, tokenizer.eot_id, found["mask"]) if masks_loss else None

    def state(self) -> dict[str, Any]:
        """What is written so far, which is on the disk when this returns."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "document": self._document,
            "file": self._file.state(),
            "mask": None if self._mask is None else self._mask.state(),
        }

    def note(self, document: int, text: str, marks: tuple[Mark, ...] = ()) -> None:
        """Count ``text``, which belongs to document number ``document``."""
        self.documents += document != self._document
        self._document = document
        self.text_bytes += len(text) if text.isascii() else len(text.encode())
        if self._mask is not None:
            self._mask.text_bytes += counted_bytes(text, marks)

    def note_block(self, documents: Sequence[int], data: bytes) -> None:
        """Count whole documents, joined as :mod:`cpulm.data.joined` says, which all count in the loss."""
        self.documents += len(documents)
        self._document = documents[-1]
        size = len(data) - len(documents)
        self.text_bytes += size
        if self._mask is not None:
            self._mask.text_bytes += size

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
        work: has the folder, and keeps what is done.
        masks_loss: whether to write which tokens count in the loss.

    Attributes:
        kept: the state of an earlier process, from which the work continues; None: it begins.
    """

    def __init__(self, work: Unfinished, tokenizer: Tokenizer, *, masks_loss: bool = False) -> None:
        self.work = work
        self.folder = work.begin()
        self.tokenizer = tokenizer
        self._masks_loss = masks_loss
        self._digest = hashlib.blake2b(tokenizer.to_json().encode(), digest_size=16).hexdigest()
        self.kept = work.load("encoded")
        if self.kept and self.kept["tokenizer"] != self._digest:
            self.kept = None
        try:
            self.splits = self._writers(self.kept["splits"] if self.kept else {})
        except (OSError, ValueError):  # damaged since
            self.kept = None
            self.splits = self._writers({})

    def _writers(self, kept: dict[str, Any]) -> dict[str, SplitWriter]:
        return {
            split: SplitWriter(
                self.folder / split, self.tokenizer, masks_loss=self._masks_loss, kept=kept.get(split)
            )
            for split in SPLITS
        }

    def keep(self, state: dict[str, Any]) -> None:
        """Keep what is written, and ``state``, which says what of the text that is."""
        splits = {split: writer.state() for split, writer in self.splits.items()}
        self.work.save("encoded", {**state, "tokenizer": self._digest, "splits": splits})

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
            "tokenizer_blake2b": self._digest,
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
        self.work.clear()
        flush_folder(self.folder)

    def close(self) -> None:
        for writer in self.splits.values():
            writer.close()


@contextmanager
def writing_folder(
    work: Unfinished, tokenizer: Tokenizer, *, keep_existing: bool, masks_loss: bool = False
) -> Iterator[FolderWriter]:
    """Yield a writer whose folder is renamed to ``work.target`` when the block ends without an error.

    Args:
        work: its target is absent, or an empty folder, when the block ends.
        tokenizer: the tokenizer that made the tokens.
        keep_existing: if another process has finished the target meanwhile, keep that one.
        masks_loss: as of :class:`FolderWriter`.

    Raises:
        ResourceError: if the disk is full, or the folder cannot be written.
        DataError: if the target is not empty and ``keep_existing`` is False.
    """
    target = work.target
    with work, _disk_errors(target):
        writer = FolderWriter(work, tokenizer, masks_loss=masks_loss)
        try:
            yield writer
        finally:
            writer.close()
        _rename(writer.folder, target, keep_existing=keep_existing)


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
