"""What is no regular file is refused at once, in words to show, and nothing is written through a link."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cpulm.regular_file import open_own, open_regular, read_named, read_regular

NEW = os.O_RDWR | os.O_CREAT


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "it is a pipe, not a file"),
    "folder": (Path.mkdir, "Is a directory"),
    "socket": (make_socket, "No such device or address"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "link to itself": (lambda path: path.symlink_to(path.name), "Too many levels"),
    "nothing": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("kind", ODD)
def test_only_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    make, why = ODD[kind]
    path = tmp_path / "odd"
    make(path)
    with pytest.raises(OSError, match=why):
        open_regular(path)


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "nothing"])
def test_only_a_regular_file_is_written_in_place(tmp_path: Path, kind: str) -> None:
    make, _ = ODD[kind]
    path = tmp_path / "odd"
    make(path)
    with pytest.raises(OSError, match=r"odd"):
        open_own(path, NEW)


def test_no_file_is_written_through_a_link(tmp_path: Path) -> None:
    thesis, link, nowhere = tmp_path / "thesis", tmp_path / "link", tmp_path / "nowhere"
    thesis.write_text("mine")
    link.symlink_to(thesis)
    nowhere.symlink_to(tmp_path / "new")
    for path in (link, nowhere):
        with pytest.raises(OSError, match="it is a link to another file"):
            open_own(path, NEW)
    assert thesis.read_text() == "mine"
    assert not (tmp_path / "new").exists()
    assert read_regular(link, 4) == b"mine"


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == read_named(path, 5) == b"12345"
    for read in (read_regular, read_named):
        with pytest.raises(OSError, match="larger than 4 bytes"):
            read(path, 4)


def test_a_pipe_without_a_writer_is_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_named(tmp_path / "pipe", 10) == b""


def test_a_dash_is_standard_input_and_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"12345")))
    assert read_named(Path("-"), 5) == read_named(Path("-"), 5) == b"12345"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"other")))
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_named(Path("-"), 4)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OSError, match="standard input is closed"):
        read_named(Path("-"), 5)


def test_a_name_that_no_file_can_have_is_an_error_of_the_system() -> None:
    for name in ("a\0b", "x" * 300):
        with pytest.raises(OSError):  # noqa: PT011 - the words are the system's
            open_regular(Path(name))
