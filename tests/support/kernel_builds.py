"""Compiles the kernels for tests, in the same way as runs or in other ways."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

NARROWER = {"8 lanes": ("-mavx2", "-mfma"), "4 lanes": ("-msse2",)}
"""Flags of compilers for vectors that are narrower than those of the newest CPUs, by what they hold."""


def kept_kernels(config: pytest.Config, kind: str = "as in a run") -> Path:
    """The folder of compiled kernels of one kind, which is kept from one session to the next.

    A library there is named after a digest of all that it depends on.
    """
    return config.rootpath / ".pytest_cache" / "kernels" / kind


class BuildKernels(Protocol):
    """Compiles the kernels with ``flags`` instead of one of the usual flags, and gives the library."""

    def __call__(self, *flags: str, instead_of: str = "") -> Path: ...
