"""The cache of token folders: they are found again by a key, listed, and deleted when nobody used them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cpulm.cache_dir import cache_folder
from cpulm.data.tokenfile import TokenFolder, read_meta
from cpulm.errors import DataError
from cpulm.events import Listener, Notice

_ABANDONED_SECONDS = 86_400


@dataclass(frozen=True)
class CachedTokens:
    """A token folder in the cache.

    Attributes:
        path: the folder.
        source: what it was made from; empty if the folder is damaged.
        tokens: in both splits.
        size_bytes: of all its files.
        used: when a run last used it, in seconds since 1970.
    """

    path: str
    source: tuple[str, ...]
    tokenizer: str
    vocab_size: int
    tokens: int
    size_bytes: int
    used: float


def token_caches() -> list[Path]:
    """The user's cache of token folders, and the folder beside the runs for when that cannot be written."""
    return [cache_folder().absolute() / "tokens", Path("runs", ".tokens").absolute()]


def find_cached(key: str, emit: Listener, check: Callable[[TokenFolder], None]) -> TokenFolder | None:
    """Return the token folder with this key; None if there is none. A damaged one is deleted, with a warning.

    Args:
        check: raises DataError if the folder is damaged.
    """
    for cache in token_caches():
        folder = cache / key
        try:
            if not folder.exists():
                continue
            known = TokenFolder.open(folder)
            check(known)
        except DataError as error:
            discard_damaged(folder, error, emit)
        except OSError:  # a cache that may not be entered
            continue
        else:
            mark_used(folder)
            return known
    return None


def discard_damaged(folder: Path, error: DataError, emit: Listener) -> None:
    """Warn that the tokens are made again; delete the damaged ``folder`` if it is in the cache."""
    emit(Notice(level="warning", message=f"{error.message}: building it again"))
    if folder.parent in token_caches():
        shutil.rmtree(folder, ignore_errors=True)


def mark_used(folder: Path) -> None:
    """Note in the folder's time that a run uses it now."""
    with suppress(OSError):
        os.utime(folder)


def list_cached() -> list[CachedTokens]:
    """The token folders in the cache, the last used first; damaged ones too."""
    folders = [folder for cache in token_caches() for folder in _inside(cache)]
    return sorted(map(_described, folders), key=lambda one: -one.used)


def prune(unused_seconds: float) -> list[CachedTokens]:
    """Delete the token folders that no run used for so long; return them.

    A run that still needs one makes it again from its text.
    """
    deleted = []
    for one in list_cached():
        if time.time() - one.used >= unused_seconds:
            shutil.rmtree(one.path, ignore_errors=True)
            if not Path(one.path).exists():
                deleted.append(one)
    return deleted


def delete_abandoned() -> None:
    """Delete unfinished folders, a day old, that killed processes left in the cache."""
    for cache in token_caches():
        with suppress(OSError):
            for unfinished in cache.glob(".*.tmp"):
                with suppress(FileNotFoundError):  # another process has just renamed it
                    newest = max(path.stat().st_mtime for path in (unfinished, *unfinished.iterdir()))
                    if time.time() - newest > _ABANDONED_SECONDS:
                        shutil.rmtree(unfinished, ignore_errors=True)
                        unfinished.with_suffix(".lock").unlink(missing_ok=True)


def _inside(cache: Path) -> list[Path]:
    try:
        return [folder for folder in cache.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    except OSError:
        return []


def _described(folder: Path) -> CachedTokens:
    size, used = 0, 0.0
    with suppress(OSError):
        size = sum(file.stat().st_size for file in folder.iterdir())
        used = folder.stat().st_mtime
    try:
        meta = read_meta(folder)
    except DataError:
        return CachedTokens(str(folder), (), "damaged", 0, 0, size, used)
    tokens = meta["train"]["tokens"] + meta["val"]["tokens"]
    source = tuple(map(str, meta.get("source", ())))
    return CachedTokens(
        str(folder), source, str(meta.get("tokenizer")), meta["vocab_size"], tokens, size, used
    )
