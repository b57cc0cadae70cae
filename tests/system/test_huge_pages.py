"""Memory for weights is of the kind that the system puts on huge pages."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from cpulm.system.huge_pages import huge_page_memory

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_of(address: int) -> set[str]:
    """What the system notes of the memory at ``address``: sh for shared, hg if huge pages are wanted."""
    maps = Path("/proc/self/smaps").read_text()
    for part in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", maps, flags=re.MULTILINE):
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", part)
        if bounds and int(bounds[1], 16) <= address < int(bounds[2], 16):
            return set(part.rsplit("VmFlags:", 1)[1].split())
    raise AssertionError("no memory is there")


def test_it_is_private_memory_that_asks_for_huge_pages() -> None:
    if not SWITCH.exists():
        pytest.skip("this system has no huge pages")
    memory = huge_page_memory(1 << 23)
    flags = flags_of(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    assert "hg" in flags
    assert "sh" not in flags


def test_it_can_be_of_any_size() -> None:
    memory = huge_page_memory(5)
    memory[:] = b"abcde"
    assert len(memory) == 5
    assert len(huge_page_memory(0)) == 1
