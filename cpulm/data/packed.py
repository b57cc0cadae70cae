"""Opens compressed files and the members of zip archives, as streams and within limits.

A small file can hold more than a disk: 10 MB of xz can become terabytes. What grows beyond 64 MiB may be at
most 200 times as large as what it is packed in; text is packed to a third, logs sometimes to a fiftieth.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from posixpath import splitext
from typing import IO, Any

from cpulm.data.extras import library
from cpulm.errors import DataError

LARGEST_RATIO = 200
FREE_BYTES = 64 << 20


def _zstd() -> Any:
    """The module for Zstandard; Python has it from 3.14 on."""
    names = ("compression.zstd", "backports.zstd")
    return library(*names, what="a .zst file", package="backports.zstd", extra="zstd")


COMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda packed: _zstd().open(packed),
}
"""By suffix: how a compressed file is opened."""


_DAMAGE = (EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class Unpacked(io.RawIOBase):
    """What a compressed stream holds.

    Raises:
        DataError: when it is read, if the stream is damaged, or holds far more than text does.
    """

    def __init__(
        self, name: str, stream: IO[bytes], packed_size: int, packed_read: Callable[[], int]
    ) -> None:
        """Take ``stream``, which unpacks ``packed_size`` bytes, of which ``packed_read`` tells those read."""
        self._name = name
        self._stream = stream
        self._packed_size = packed_size
        self.packed_read = packed_read
        self.count = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._stream.read(len(view))
        except Exception as error:  # each kind of compression has its own
            if not isinstance(error, _DAMAGE) and type(error).__name__ != "ZstdError":
                raise
            raise DataError(
                f"{self._name} cannot be unpacked: {error}", "it is damaged or incomplete; copy it again"
            ) from error
        self.count += len(data)
        require_ratio(self._name, self.count, self._packed_size)
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def require_ratio(name: str, size: int, packed_size: int) -> None:
    """Refuse what was packed to far less than text can be.

    Raises:
        DataError: naming the file and the sizes.
    """
    if size > FREE_BYTES and size > LARGEST_RATIO * packed_size:
        raise DataError(
            f"{name} unpacks to more than {LARGEST_RATIO} times its {packed_size:,} bytes",
            "text does not; unpack it yourself if you trust it",
        )


def format_suffix(name: str) -> str:
    """The suffix that tells a file's format, in lower case: ``.jsonl`` of ``a.jsonl.gz``."""
    stem, suffix = splitext(name.lower())
    return splitext(stem)[1] if suffix in COMPRESSED else suffix


def is_compressed(name: str) -> bool:
    return splitext(name.lower())[1] in COMPRESSED


def unpacked(name: str, packed: io.BufferedReader, size: int) -> Unpacked:
    """Open the compressed file ``name``, of ``size`` bytes."""
    opener = COMPRESSED[splitext(name.lower())[1]]
    return Unpacked(name, opener(packed), size, packed.tell)


def open_archive(name: str, packed: io.BufferedReader) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises:
        DataError: if it is none.
    """
    try:
        return zipfile.ZipFile(packed)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{name} is not a zip archive: {error}", "it is damaged or incomplete; copy it again"
        ) from error


def readable_members(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The files in an archive that are not hidden, by name.

    Raises:
        DataError: if one is encrypted, or unpacks to far more than text does.
    """
    found = []
    for member in archive.infolist():
        parts = PurePosixPath(member.filename).parts
        if member.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        if member.flag_bits & 1:
            raise DataError(
                f"{name}/{member.filename} is encrypted", "unpack the archive, and give the folder"
            )
        require_ratio(f"{name}/{member.filename}", member.file_size, member.compress_size)
        found.append(member)
    return sorted(found, key=lambda member: member.filename)


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Unpacked:
    """Open a member of an archive.

    Raises:
        DataError: if its kind of compression is not known.
    """
    try:
        stream = archive.open(member)
    except (NotImplementedError, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"{name} cannot be unpacked: {error}", "unpack it with another program") from error

    def packed_read() -> int:
        return opened.count * member.compress_size // max(1, member.file_size)

    opened = Unpacked(name, stream, member.compress_size, packed_read)
    return opened
