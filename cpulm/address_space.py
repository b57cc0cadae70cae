"""The limit on the addresses of a process (``ulimit -v``, ``VSizeFactor`` of SLURM), and how to fit below it.

Addresses are more than memory: code that never runs, stacks, and what the allocator reserves. Libraries meet
the limit while they load or start a thread, and then end the process without a word of ours (OpenBLAS,
libgomp, tokenizers) or hang (torch's import). So what they need is asked for first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from cpulm.units import format_bytes

_M_ARENA_MAX = -8
_LIBRARY_BYTES = {"torch": 704 << 20, "tokenizers": 384 << 20}
"""What a process that loads the library needs, beside its threads (torch 2.13, tokenizers 0.22)."""
_STACK_BYTES = 16 << 20
"""For each processor: OpenBLAS and OpenMP both start a thread."""
_RUN_BYTES = 96 << 20
"""The stacks of a run's threads."""


def limit_bytes() -> int | None:
    """The limit on this process's addresses; None if it has none."""
    if sys.platform != "linux":  # macOS has such a limit, but does not enforce it
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def more_memory() -> str:
    """What the user can do so that this process gets more memory, in words."""
    limit = limit_bytes()
    if limit is None:
        return "close other programs"
    return f"raise the limit of {format_bytes(limit)} on this process's addresses (`ulimit -v unlimited`)"


def fit_below_limit() -> None:
    """Where there is a limit, reserve fewer addresses, and refuse libraries that it is too low for.

    glibc reserves 64 MiB for each thread that allocates: a run of preset tiny needs 1.7 GiB of addresses with
    that, 0.95 GiB without (2 cores).
    """
    if limit_bytes() is None or any(isinstance(one, _Refusal) for one in sys.meta_path):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
    sys.meta_path.insert(0, _Refusal())


def room_in_addresses() -> int | None:
    """The memory in bytes that the limit lets this process hold, with what it holds now; None without one."""
    limit = limit_bytes()
    if limit is None:
        return None
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    not_held = (int(pages[0]) - int(pages[1])) * os.sysconf("SC_PAGE_SIZE")
    return max(0, limit - not_held - _RUN_BYTES)


class _Refusal:
    """Finds no module. Importing a library that needs more addresses than the limit raises MemoryError."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> None:
        limit = limit_bytes()
        if limit is None or name not in _LIBRARY_BYTES:
            return
        needed = _LIBRARY_BYTES[name] + _STACK_BYTES * (os.cpu_count() or 1)
        if limit < needed:
            raise MemoryError(f"{name} needs {format_bytes(needed)} of addresses to start")
