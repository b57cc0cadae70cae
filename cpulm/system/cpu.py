"""Describes processors, for the readers of each operating system."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

UNKNOWN = "unknown"

INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "neon": "NEON",
    "asimddp": "NEON-dotprod",
    "i8mm": "NEON-i8mm",
    "bf16": "NEON-bf16",
    "sve": "SVE",
    "sve2": "SVE2",
}
"""The instruction sets that affect the speed of training: Linux's name -> the usual name."""

SLOW_CORE_SPEED = 0.4
"""The assumed speed of an efficiency core's matrix products relative to a performance core: its vector
units are about half as wide and its clock is lower."""


@dataclass(frozen=True)
class Cpu:
    """The processors of a machine.

    ``usable_logical`` and ``usable_physical`` count those that the process may be scheduled on;
    ``usable_performance`` counts the performance cores among the latter, None if all are alike or unknown.
    ``caches`` maps ``L1d``, ``L2`` and ``L3`` to the bytes available to one core.
    """

    model: str
    architecture: str
    physical_cores: int
    logical_cores: int
    usable_logical: int
    usable_physical: int
    usable_performance: int | None = None
    instruction_sets: tuple[str, ...] = ()
    caches: Mapping[str, int] = field(default_factory=dict)
    max_mhz: float | None = None


def worth_using(physical: int, performance: int | None) -> int:
    """Return how many of the usable cores should get a thread each.

    A parallel loop is cut into equal parts and waits for the slowest, so efficiency cores help only if
    all cores at :data:`SLOW_CORE_SPEED` do more than the performance cores alone: all of 2 fast and 8
    slow cores, but only the fast ones of 6 fast and 8 slow.
    """
    if performance is None or not 0 < performance < physical:
        return physical
    return physical if physical * SLOW_CORE_SPEED > performance else performance


def name_instruction_sets(flags: set[str]) -> tuple[str, ...]:
    """Return the usual names of the relevant ones of Linux's ``flags``, in a fixed order."""
    return tuple(dict.fromkeys(name for flag, name in INSTRUCTION_SETS.items() if flag in flags))


def clean_model(name: str) -> str:
    """Remove trademarks, repeated spaces and the frequency from a processor's name."""
    name = re.sub(r"\((?:R|TM|tm|r)\)", "", name)
    name = re.sub(r"\s*@\s*[\d.]+\s*GHz", "", name)
    name = re.sub(r"\s+\d+-Core Processor\b|\b(?:CPU|Processor)\b", "", name)
    return " ".join(name.split()) or UNKNOWN


def architecture() -> str:
    """Return the processor's architecture as the system names it: ``x86_64``, ``arm64``, ``amd64``."""
    if sys.platform == "win32":
        # PROCESSOR_ARCHITECTURE is the interpreter's; PROCESSOR_ARCHITEW6432 is set under emulation
        name = os.environ.get("PROCESSOR_ARCHITEW6432") or os.environ.get("PROCESSOR_ARCHITECTURE")
        return (name or UNKNOWN).lower()
    return os.uname().machine


def logical_count() -> int:
    return os.cpu_count() or 1
