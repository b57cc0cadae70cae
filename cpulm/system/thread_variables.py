"""Reads the environment variables that set the number of OpenMP threads, in torch as well."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ThreadVariables:
    """``num_threads`` is OMP_NUM_THREADS, and ``thread_limit`` OMP_THREAD_LIMIT.

    None if unset or not a positive number; OpenMP ignores such values, too.
    """

    num_threads: int | None = None
    thread_limit: int | None = None


def read_thread_variables(environ: Mapping[str, str] = os.environ) -> ThreadVariables:
    """Read ``environ``. In a list such as ``4,2`` the first number is that of the outermost level."""
    first = environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return ThreadVariables(_positive(first), _positive(environ.get("OMP_THREAD_LIMIT", "")))


def without_torchruns_default(
    found: ThreadVariables, environ: Mapping[str, str] = os.environ
) -> ThreadVariables:
    """Return ``found`` without the OMP_NUM_THREADS=1 that torchrun sets for several processes.

    A user's own 1 looks the same: ``--threads 1`` says it to cpulm. cpulm's launcher sets nothing.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in environ and "CPULM_LAUNCH" not in environ
    return replace(found, num_threads=None) if by_torchrun and found.num_threads == 1 else found


def _positive(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0 else None
