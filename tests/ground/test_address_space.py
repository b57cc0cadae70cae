"""A limit on addresses (``ulimit -v``) is met by a message, not within a library that ends the process."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cpulm.address_space import limit_bytes, more_memory, room_in_addresses
from cpulm.command import cpulm_command
from cpulm.errors import ResourceError, memory_errors
from cpulm.estimate.memory import Arithmetic
from cpulm.estimate.requirements import check_memory, memory_for_run
from cpulm.regular_file import read_regular
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems enforce no such limit")


@pytest.mark.parametrize(
    ("mebibytes", "library", "arguments"), [(200, "tokenizers", ["tokenize"]), (600, "torch", ["train"])]
)
def test_a_library_that_needs_more_is_not_loaded(
    mebibytes: int, library: str, arguments: list[str], in_empty_folder: Path
) -> None:
    """OpenBLAS, libgomp and tokenizers abort; torch's import hangs between 620 and 700 MB."""
    (in_empty_folder / "notes.txt").write_text("the cat sat on the mat\n" * 100)
    command = shlex.join(cpulm_command(*arguments, "notes.txt", "--out=new"))
    shell = ["sh", "-c", f"ulimit -v {mebibytes * 1024}; exec {command}"]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    said = " ".join(done.stderr.split())
    assert (done.returncode, done.stdout) == (5, "")
    assert said.startswith(f"error: out of memory: {library} needs ")
    assert f"raise the limit of {mebibytes}.0 MiB" in said
    assert "Traceback" not in said


@contextmanager
def limited(more_bytes: int) -> Iterator[int]:
    """Let this process have ``more_bytes`` of addresses more than it has; gives the limit."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_run_has_what_the_limit_leaves() -> None:
    assert room_in_addresses() is None
    machine = replace(read_machine(), memory_available_bytes=1 << 50)
    settings = resolve(assignments=["model.n_embd=3072", "train.micro_batch_size=64"])
    with limited(1 << 30) as limit:
        assert limit_bytes() == limit
        room = room_in_addresses()
        available = memory_for_run(machine)
        with pytest.raises(ResourceError) as caught:
            check_memory(settings, 512, Arithmetic(), available)
        held = psutil.Process().memory_info().rss
    assert room is not None
    assert held + 2**29 < room < held + 2**30
    assert available == pytest.approx(room, rel=0.01)
    assert caught.value.hint.startswith("raise the limit of ")
    assert memory_for_run(machine) > 1 << 50


def test_hints_name_the_limit() -> None:
    assert more_memory() == "close other programs"
    with limited(1 << 30), pytest.raises(ResourceError) as caught:  # noqa: SIM117 - the limit is for the hint
        with memory_errors("while reading", "take a smaller model"):
            raise MemoryError
    assert caught.value.hint.startswith("raise the limit of ")
    assert caught.value.hint.endswith("(`ulimit -v unlimited`), or take a smaller model")


def test_a_file_takes_the_memory_that_it_has_and_not_what_it_might_have(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text("{}")
    assert read_regular(path, 1 << 50) == b"{}"
