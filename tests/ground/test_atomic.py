"""Files are written completely or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cpulm.atomic import replacing, replacing_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_new_content_takes_the_name_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def test_the_file_can_be_read_and_sought_while_it_is_written(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.bin") as file:
        file.write(b"0000body")
        file.seek(0)
        file.write(b"head")
        file.seek(0)
        assert file.read() == b"headbody"


def test_after_an_error_the_old_content_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def break_off() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_an_error_names_the_file_and_not_what_stands_for_it_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "a.txt"
    with pytest.raises(FileNotFoundError) as caught:
        write_text(path, "text")
    assert caught.value.filename == str(path)


def test_text_is_utf8_with_its_line_ends_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "ä.txt", "Größe\r\n漢字\n")
    assert (tmp_path / "ä.txt").read_bytes() == "Größe\r\n漢字\n".encode()


def test_threads_that_write_the_same_file_leave_one_of_their_contents_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    contents = [letter * 10_000 for letter in "abcd"]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text(encoding="utf-8") in contents
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of files")
def test_a_full_disk_is_a_resource_error_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    program = """if True:
        import resource, signal, sys
        from pathlib import Path
        from cpulm.atomic import replacing
        from cpulm.errors import ResourceError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with replacing(Path(sys.argv[1])) as file:
                file.write(bytes(100_000))
        except ResourceError as error:
            print(error.message, error.hint)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert f"no space to write {path}" in done.stdout
    assert "free some disk space" in done.stdout
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("old", "new"):
        with replacing_folder(path) as folder:
            (folder / content).write_text(content)
            assert names(tmp_path) != ["model"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["model"]


def test_after_an_error_the_old_folder_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    with replacing_folder(path) as folder:
        (folder / "old").write_text("old")

    def write_a_new_one() -> None:
        with replacing_folder(path) as folder:
            (folder / "new").write_text("new")

    replace = Path.replace

    def not_into_place(source: Path, target: Path) -> Path:
        if source.name.endswith(".tmp") and not source.name.endswith(".old.tmp"):
            raise PermissionError
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", not_into_place)
    with pytest.raises(PermissionError):
        write_a_new_one()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["model"]
