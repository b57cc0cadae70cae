"""Memory that is freed and taken again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource, torch
from cpulm.engine.allocator import keep_freed_memory
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
