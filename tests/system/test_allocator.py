"""Freed memory: used again by the next step, and returned to the system if there is none."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref

import psutil
import pytest
import torch

from cpulm.errors import DivergedError
from cpulm.system.allocator import release_frames, release_memory

MEBIBYTE = 1 << 20

PROBE = """
import resource, torch
from cpulm.system.allocator import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(1 << 24).zero_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_large_blocks_are_the_same_memory_after_a_few_times() -> None:
    def pages(kept: bool) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(kept=kept)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert pages(kept=True) < 100 < pages(kept=False)


class Holder:
    """Something large that holds itself too, as a trainer does through those that it calls back."""

    def __init__(self) -> None:
        self.numbers = torch.ones(MEBIBYTE)
        self.myself = self


def test_what_holds_only_itself_is_gone() -> None:
    gc.disable()
    try:
        gone = weakref.ref(Holder())
        assert gone() is not None
        release_memory()
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_blocks_are_returned_although_later_ones_follow_them() -> None:
    process = psutil.Process()
    many = [torch.ones(MEBIBYTE // 64) for _ in range(64 * 64)]  # 64 KiB each: none is mapped by itself
    behind = torch.ones(MEBIBYTE // 64)
    many.clear()
    before = process.memory_info().rss
    release_memory()
    freed = before - process.memory_info().rss
    assert freed > 100 * MEBIBYTE
    assert behind.sum() == behind.numel()


def test_the_frames_of_an_error_are_released_and_its_lines_stay() -> None:
    held: list[weakref.ref[Holder]] = []

    def deep() -> None:
        model = Holder()
        held.append(weakref.ref(model))
        raise RuntimeError("not enough memory")

    def above() -> None:
        model = Holder()
        held.append(weakref.ref(model))
        try:
            deep()
        except RuntimeError as cause:
            raise DivergedError("it diverged", "begin anew") from cause

    with pytest.raises(DivergedError) as caught:
        above()
    release_frames(caught.value)
    release_memory()
    assert [one() for one in held] == [None, None]
    assert caught.value.__traceback__ is not None
    assert caught.value.__cause__ is not None


def test_an_error_that_is_the_context_of_its_own_cause_ends_the_search() -> None:
    error, cause = DivergedError("it diverged"), RuntimeError("inf")
    error.__cause__, cause.__context__ = cause, error
    release_frames(error)
