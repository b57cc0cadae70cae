"""For every test: no settings from the caller's environment, and caches in a temporary folder."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import browser as browser  # one for all: no process can start a second driver
from hypothesis import settings
from kernel_builds import BuildKernels, kept_kernels

from cpulm.native import library
from cpulm.system.machine import Machine, read_machine
from cpulm.system.precisions import has_fast_int8
from cpulm.system.software import Compiler, find_compiler

# The same examples each time: what decides whether a change goes in must not depend on luck.
# `python -m benchmarks.soak fuzz` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


# A shell's job in the background begins with Ctrl-C ignored, and one of nohup with SIGHUP; so would the
# processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Hundreds of processes import the same modules: compiling torch's again takes longer than their tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Each of several workers, and all that they start, would have the others' threads wait for its spinning ones:
# set before torch is loaded, this takes four fifths of the processor time from tests of small models.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse a precision that runs refuse; compile the kernels, which several workers would do at once."""
    if PRECISION == "int8" and not has_fast_int8(read_machine().instruction_sets):
        pytest.exit("CPULM_RUNTIME__PRECISION=int8: runs refuse it on a CPU without int8 products", 4)
    if not hasattr(session.config, "workerinput") and getattr(session.config.option, "numprocesses", None):
        compiler, _ = find_compiler()
        if compiler is not None and sys.platform != "win32":
            library_for_this_machine(compiler, kept_kernels(session.config))


def pytest_collection_finish() -> None:
    """What all test modules have loaded is never garbage: a run's own search for some goes over the rest."""
    gc.collect()
    gc.freeze()


def library_for_this_machine(compiler: Compiler, folder: Path) -> Path:
    """The kernels in ``folder``, under the same name as a run on this machine looks for."""
    return library.compile_kernels(compiler.command, compiler.version, read_machine().cpu_identity, folder)[0]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Path]:
    """Tests neither read nor fill the user's cache; what one test caches, the next ones may use."""
    folder = tmp_path_factory.mktemp("cache")
    kernels = kept_kernels(pytestconfig)
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "kernels").symlink_to(kernels, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPULM_CACHE", str(folder))
        yield folder


@pytest.fixture
def fresh_cache(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for this test alone, empty but for the compiled kernels."""
    folder = tmp_path / "fresh-cache"
    folder.mkdir()
    (folder / "kernels").symlink_to(own_cache / "kernels", target_is_directory=True)
    monkeypatch.setenv("CPULM_CACHE", str(folder))
    return folder


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
    for name in (
        "CPULM_DEBUG",
        "NO_COLOR",
        "FORCE_COLOR",
        "COLUMNS",
        "LINES",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
    ):
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
def build_kernels(gcc_like: Compiler, pytestconfig: pytest.Config) -> BuildKernels:
    """Gives the kernels compiled for this machine, also with other flags."""

    def build(*flags: str, instead_of: str = "") -> Path:
        usual = library._flags()
        if instead_of and instead_of not in usual:
            pytest.skip(f"no {instead_of} here to replace")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "_flags", lambda: [*(one for one in usual if one != instead_of), *flags])
            kind = " ".join(flags).replace("/", "_") or "as in a run"
            return library_for_this_machine(gcc_like, kept_kernels(pytestconfig, kind))

    return build


@pytest.fixture(scope="session")
def kernels_library(build_kernels: BuildKernels) -> Path:
    """The kernels, compiled for this machine."""
    return build_kernels()


@pytest.fixture
def kernels_of_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose CPU a test changes has this CPU's kernels: compiling them again would give the same."""
    monkeypatch.setattr(Machine, "cpu_identity", read_machine().cpu_identity)


@pytest.fixture
def scalar_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile without a cache, to code without vectors: no time goes into trying compilers for them."""
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    with torch._inductor.config.patch("cpp.vec_isa_ok", False):
        yield


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder for this test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
