"""What holds for every test: no settings from the caller's environment, caches in a folder of their own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cpulm.native.library import compile_kernels
from cpulm.system.software import Compiler, find_compiler

# The same examples each time: what decides whether a change goes in must not depend on luck.
# `python -m benchmarks.soak fuzz` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


# A shell's job in the background begins with Ctrl-C ignored, and so would the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache; what one test caches, the next ones may use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPULM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


PRECISION = os.environ.get("CPULM_RUNTIME__PRECISION", "fp32")
"""What the toy runs of all tests train in, so that no test depends on the CPU. The caller's environment may
set another one: ``CPULM_RUNTIME__PRECISION=int8 pytest`` shows what a CPU that trains in int8 would."""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """``CPULM_TRAIN__LR`` and its like, OMP_NUM_THREADS, a taste in colours, or a window's width decide
    nothing in a test, but for :data:`PRECISION`."""
    for name in os.environ:
        if name.startswith("CPULM_") and "__" in name:
            monkeypatch.delenv(name)
    for name in ("CPULM_DEBUG", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CPULM_RUNTIME__PRECISION", PRECISION)


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """A run flushes denormals to zero in the whole process; the next test begins with them again."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def gcc_like() -> Compiler:
    """A compiler that the kernels can be compiled with."""
    compiler, problem = find_compiler()
    if compiler is None or "MSVC" in compiler.version or sys.platform == "win32":
        pytest.skip(f"no compiler that takes GCC's options: {problem}")
    return compiler


@pytest.fixture(scope="session")
def kernels_library(gcc_like: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels, compiled for this machine."""
    folder = tmp_path_factory.mktemp("kernels")
    return compile_kernels(gcc_like.command, gcc_like.version, "this machine", folder)[0]


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder for this test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
