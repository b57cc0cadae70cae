"""Long work on a token folder outlives its process: what is done is kept for the next one.

The tokens are written into a hidden folder beside the one that they are for. In it, every few seconds, the
state of the work is written as JSON after its digest, whole or not at all, and after the tokens that it
describes; a state that is damaged, or of another form, counts as none. The folder's name contains the key of
text, settings and tokenizer, so that only the same work continues there. A lock keeps other processes out.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from cpulm.atomic import write_text
from cpulm.errors import AbortedError, ResourceError, StoppedError
from cpulm.file_lock import lock_file

EVERY_SECONDS = 10.0
"""How often the state is written, and so how much work a kill may lose."""
_KEY_LETTERS = 16
_STATES = ("files", "scan", "tokenizer", "encoded")
_FORM = b"3"
"""Counts the forms of the states."""


class Unfinished:
    """Work on the folder ``target``, in a ``with`` block that removes what is left of it.

    Left for the next process are: the work of one that was killed, and of one that was stopped after it had
    kept something. Complete tokens remove what was left of other text or settings for the same folder.

    Args:
        target: the token folder.
        key: of all that decides the tokens; empty: the work is not kept.

    Attributes:
        target: the token folder.
        folder: where the work is, from :meth:`begin` on.
        kept: whether there is a state to continue from.
    """

    def __init__(self, target: Path, key: str = "") -> None:
        self.target = target
        beside = f".{target.name}.{key[:_KEY_LETTERS]}"
        self._private = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        self.folder = target.with_name(f"{beside}.tmp") if key else self._private
        self.kept = False
        self._lock_file = target.with_name(f"{beside}.lock")
        self._lock: int | None = None
        self._saved = time.monotonic()
        self._made: list[Path] = []

    def __enter__(self) -> Unfinished:
        with suppress(OSError):
            if self.folder.is_dir():
                self.kept = self._claim() and any(map(self.load, _STATES))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, (StoppedError, AbortedError, KeyboardInterrupt))
        if (self._lock is not None and not (stopped and self.kept)) or self.folder == self._private:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._release()
        if kind is None:
            self._remove_others()
        for folder in self._made:
            with suppress(OSError):  # not empty: it holds the target, or another process's work
                folder.rmdir()

    def begin(self) -> Path:
        """Return the folder to write in; one of its own if another process does the same work.

        Raises:
            OSError: if it cannot be made.
        """
        if not self._claim():
            self.folder = self._private
            self._make_parents()
            self.folder.mkdir()
        return self.folder

    def due(self) -> bool:
        """Whether it is time to :meth:`save`."""
        return time.monotonic() - self._saved >= EVERY_SECONDS

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Keep ``state`` under ``name``; if it cannot be written, nothing is kept, and that is no error."""
        with suppress(OSError, ResourceError):
            if self._claim():
                assert name in _STATES
                text = json.dumps(state)
                write_text(self._file(name), f"{_digest(text.encode())}\n{text}")
                self.kept = True
        self._saved = time.monotonic()

    def load(self, name: str) -> dict[str, Any] | None:
        """What an earlier process, or this one, kept under ``name``; None if there is nothing."""
        if self._lock is None:
            return None
        try:
            digest, _, text = self._file(name).read_bytes().partition(b"\n")
        except OSError:
            return None
        return dict(json.loads(text)) if digest == _digest(text).encode() else None

    def clear(self) -> None:
        """Remove all states: the tokens are complete."""
        for state in _STATES:
            self._file(state).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"unfinished-{name}.json"

    def _claim(self) -> bool:
        """Make the folder, if it can be kept, and take its lock; False if that cannot be had."""
        if self._lock is not None:
            return True
        if self.folder == self._private:
            return False
        self._make_parents()
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        # Between opening and locking, the process that held it may have ended, and removed the file.
        if lock_file(descriptor) and _is_at(descriptor, self._lock_file):
            self._lock = descriptor
            self.folder.mkdir(exist_ok=True)
            return True
        os.close(descriptor)
        return False

    def _release(self) -> None:
        if self._lock is not None:
            with suppress(OSError):  # Windows keeps the name of an open file
                self._lock_file.unlink()
            os.close(self._lock)
            self._lock = None

    def _remove_others(self) -> None:
        """Remove unfinished work on the same target that no running process holds."""
        left = f".{glob.escape(self.target.name)}.{'[0-9a-f]' * _KEY_LETTERS}"
        with suppress(OSError):
            for folder in self.target.parent.glob(f"{left}.tmp"):
                other = Unfinished(self.target, folder.suffixes[-2][1:])
                if other._claim():
                    shutil.rmtree(other.folder, ignore_errors=True)
                    other._release()

    def _make_parents(self) -> None:
        self._made = self._made or [folder for folder in self.folder.parents if not folder.exists()]
        self.folder.parent.mkdir(parents=True, exist_ok=True)


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16, person=_FORM).hexdigest()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
