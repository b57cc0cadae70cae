"""Reads the environment variables that set the number of OpenMP threads, in torch as well."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cpulm.typed_json import shown


@dataclass(frozen=True)
class ThreadVariables:
    """``num_threads`` is that of the variable ``name``, and ``thread_limit`` OMP_THREAD_LIMIT.

    None if unset or not a positive number; OpenMP ignores such values, too. ``ignored`` names these.
    """

    num_threads: int | None = None
    thread_limit: int | None = None
    name: str = "OMP_NUM_THREADS"
    ignored: tuple[str, ...] = ()


def read_thread_variables(environ: Mapping[str, str] = os.environ) -> ThreadVariables:
    """Read ``environ``. In a list such as ``4,2`` the first number is that of the outermost level.

    OMP_NUM_THREADS precedes MKL_NUM_THREADS, which torch obeys as well.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
    texts = {name: environ.get(name, "").strip() for name in names}
    numbers = {name: _positive(text.split(",")[0]) for name, text in texts.items()}
    name = next((name for name in names[:2] if numbers[name] is not None), names[0])
    ignored = tuple(f"{each}={shown(texts[each])}" for each in names if texts[each] and not numbers[each])
    return ThreadVariables(numbers[name], numbers["OMP_THREAD_LIMIT"], name, ignored)


def without_torchruns_default(
    found: ThreadVariables, environ: Mapping[str, str] = os.environ
) -> ThreadVariables:
    """Return ``found`` without the OMP_NUM_THREADS=1 that torchrun sets for several processes.

    A user's own 1 looks the same: ``--threads 1`` says it to cpulm. cpulm's launcher sets nothing.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in environ and "CPULM_LAUNCH" not in environ
    is_default = found.num_threads == 1 and found.name == "OMP_NUM_THREADS"
    return replace(found, num_threads=None) if by_torchrun and is_default else found


def _positive(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 and int(text) > 0 else None
