"""Folders that cannot be listed, what cpulm wrote, files that grow, pipes and stdin."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpulm.data.readers import is_binary, read_chunks
from cpulm.data.reading import DEFAULT
from cpulm.data.sources import find_files, require_lasting_text
from cpulm.errors import CpulmError, DataError, SettingsError, StoppedError
from cpulm.events import Event, Notice
from cpulm.settings import DataSettings


def write(path: Path, content: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


@contextlib.contextmanager
def too_deep(folder: Path) -> Iterator[None]:
    """A folder in ``folder`` whose path is too long to list, which refuses root too."""
    here = Path.cwd()
    try:
        os.chdir(folder)
        for _ in range(20):
            os.mkdir("d" * 250)  # noqa: PTH102 - pathlib would make the path absolute
            os.chdir("d" * 250)
        yield
    finally:
        os.chdir(here)


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is another one")
@pytest.mark.parametrize("pattern", ["", "*/*.txt", "**/*.txt"])
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "texts" / "one" / "a.txt")
    source = str(tmp_path / "texts" / pattern)
    assert [Path(file.at).name for file in find_files([source])] == ["a.txt"]
    with too_deep(tmp_path / "texts"):
        if pattern == "*/*.txt":
            source = str(tmp_path / "texts" / Path(*["*"] * 20, "*.txt"))
        with pytest.raises(DataError, match=r"cannot (list the folder|read)") as caught:
            find_files([source])
    assert "d" * 250 in caught.value.message


@pytest.mark.parametrize("source", ["x" * 300, "x" * 300 + "/*.txt", "a\x00b"])
def test_a_path_that_cannot_be_looked_at_is_one_error(in_empty_folder: Path, source: str) -> None:
    with pytest.raises(DataError):
        find_files([source])
    assert list(in_empty_folder.iterdir()) == []


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_name_is_not_the_current_folder(in_empty_folder: Path, source: str) -> None:
    write(in_empty_folder / "a.txt")
    with pytest.raises(DataError, match="empty name"):
        find_files([source])


OWN = {
    "runs/tiny-1": ["settings.yaml", "metrics.jsonl", "latest.pt", "lock"],
    "runs/killed": ["settings.yaml", "lock"],
    "sweeps/lr": ["sweep.yaml", "results.txt"],
    "tiny-1-hf": ["config.json", "model.safetensors", "tokenizer.json", "README.md"],
    "tokens/notes": ["train.bin", "val.bin", "tokenizer.json", "meta.json"],
}


@pytest.mark.parametrize("pattern", ["", "**", "**/*"])
def test_what_cpulm_wrote_is_not_text(tmp_path: Path, pattern: str) -> None:
    for folder, names in OWN.items():
        for name in names:
            write(tmp_path / folder / name)
    write(tmp_path / "notes" / "a.txt")
    write(tmp_path / "runs" / "b.txt")
    write(tmp_path / "notes" / "settings.yaml")
    events: list[Event] = []
    files = find_files([str(tmp_path / pattern)], events.append)
    assert [file.name for file in files] == ["notes/a.txt", "notes/settings.yaml", "runs/b.txt"]
    assert [event.level for event in events if isinstance(event, Notice)] == ["info"]
    for folder in OWN:
        with pytest.raises(DataError, match="holds what cpulm wrote or a model"):
            find_files([str(tmp_path / folder)])


def test_the_cache_is_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "cache" / "kernels" / "source.cpp")
    write(tmp_path / "a.txt")
    assert [file.name for file in find_files([str(tmp_path)])] == ["a.txt"]


def test_a_file_that_grows_is_read_to_the_size_it_was_found_with(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    file = find_files([str(path)])[0]
    with path.open("a") as more:
        more.write('{"text": "three"}\n')
    assert [piece.text for piece in read_chunks(file, DEFAULT)] == ["one", "two"]
    path.write_text('{"text": "one"}\n')
    with pytest.raises(DataError, match="became shorter while it was read"):
        list(read_chunks(file, DEFAULT))


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")


def written_to(path: Path, text: str) -> threading.Thread:
    """Somebody who writes to a named pipe."""
    thread = threading.Thread(target=path.write_text, args=[text])
    thread.start()
    return thread


@POSIX
@pytest.mark.parametrize("size", [100, 300_000])
def test_a_pipe_is_read_whole_and_as_often_as_needed(tmp_path: Path, size: int) -> None:
    text = "one two " * (size // 8)
    os.mkfifo(tmp_path / "pipe")
    writer = written_to(tmp_path / "pipe", text)
    file = find_files([str(tmp_path / "pipe")])[0]
    writer.join()
    assert not is_binary(file)
    for _ in range(2):
        assert "".join(piece.text for piece in read_chunks(file, DEFAULT)) == text
    again = find_files([str(tmp_path / "pipe")] * 2)
    assert [one.place for one in again] == [file.place]


@POSIX
def test_a_pipe_read_twice_is_refused_with_a_command_to_type(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "my pipe")
    for source, word in ((str(tmp_path / "my pipe"), f"'{tmp_path}/my pipe'"), ("-", "-")):
        with pytest.raises(SettingsError, match="read only once") as refused:
            require_lasting_text([DataSettings(source=[source])], "a sweep")
        assert f"`cpulm tokenize {word} --out tokens`" in refused.value.hint


@POSIX
def test_waiting_for_a_pipe_can_be_stopped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoppedError):
        find_files([str(tmp_path / "pipe")], should_stop=lambda: True)


@POSIX
@pytest.mark.parametrize("source", ["/dev/zero", "/dev/full"])
def test_a_device_is_refused(source: str) -> None:
    with pytest.raises(CpulmError, match="is a device"):
        find_files([source])


@pytest.mark.skipif(not Path("/proc/version").is_file(), reason="no /proc")
def test_a_file_without_a_known_size_is_read_whole() -> None:
    file = find_files(["/proc/version"])[0]
    text = "".join(piece.text for piece in read_chunks(file, DEFAULT))
    assert text == Path("/proc/version").read_text()


READ_TWICE = """
import sys
from cpulm.data.readers import read_chunks
from cpulm.data.reading import DEFAULT
from cpulm.data.sources import find_files, require_lasting_text
for source in sys.argv[1:]:
    for file in find_files([source]):
        for _ in range(2):
            print(len("".join(piece.text for piece in read_chunks(file, DEFAULT))))
"""


@POSIX
@pytest.mark.parametrize("sources", [["-"], ["/dev/stdin"], ["-", "/dev/stdin"]])
def test_stdin_is_text_too(sources: list[str]) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", READ_TWICE, *sources]
    done = subprocess.run(command, input=b"a line\n" * 20_000, capture_output=True, check=True, cwd=root)
    assert done.stdout.split() == [b"140000"] * 2 * len(sources)
