"""Compiles the kernels for tests, in the same way as runs or in other ways."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

NARROWER = {"8 lanes": ("-mavx2", "-mfma"), "4 lanes": ("-msse2",)}
"""Flags of compilers for vectors that are narrower than those of the newest CPUs, by what they hold."""


class BuildKernels(Protocol):
    """Compiles the kernels with ``flags`` instead of one of the usual flags, and gives the library."""

    def __call__(self, *flags: str, instead_of: str = "") -> Path: ...
