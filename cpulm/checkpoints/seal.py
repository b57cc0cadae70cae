"""The digest in every checkpoint file, by which damage is noticed before anything is read from it."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from pathlib import Path
from typing import IO

from cpulm.errors import DataError
from cpulm.regular_file import open_regular

_COMMENT = b"cpulm-blake2b:"
_COMMENT_LENGTH = len(_COMMENT) + 64
_END_RECORD = b"PK\x05\x06"
_END_RECORD_LENGTH = 22
REMEDY = "use another checkpoint of the run, such as best.pt, latest.pt or step-*.pt"


def seal(file: IO[bytes]) -> None:
    """Write the digest of the zip archive in ``file`` into its comment; leave the file at its end."""
    end = file.seek(0, os.SEEK_END)
    file.seek(end - _END_RECORD_LENGTH)
    if file.read(4) != _END_RECORD:
        raise AssertionError("torch.save wrote an archive with a comment")
    digest = _digest(file, end - 2)
    file.seek(end - 2)
    file.write(struct.pack("<H", _COMMENT_LENGTH) + _COMMENT + digest)


def check_seal(path: Path) -> None:
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            if size < _END_RECORD_LENGTH + _COMMENT_LENGTH:
                raise not_ours(path, f"it has {size} bytes")
            file.seek(size - _COMMENT_LENGTH)
            comment = file.read()
            if not comment.startswith(_COMMENT):
                raise not_ours(path, "it was cut short, or another program wrote it")
            if _digest(file, size - _COMMENT_LENGTH - 2) != comment[len(_COMMENT) :]:
                raise DataError(f"{path} is damaged: its digest does not match its contents", REMEDY)
            _check_entries(path, size)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "give a checkpoint such as runs/tiny-1/best.pt") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", REMEDY) from error


def _check_entries(path: Path, size: int) -> None:
    """Refuse an archive whose parts are compressed or claim more bytes than the file has."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise not_ours(path, str(error)) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise not_ours(path, "its parts are compressed")
    if sum(entry.file_size for entry in entries) > size:
        raise not_ours(path, "its parts claim more bytes than the file has")


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


def not_ours(path: Path, why: str) -> DataError:
    return DataError(f"{path} is not a cpulm checkpoint: {why}", REMEDY)
