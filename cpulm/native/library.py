"""The kernels' shared library: shipped in the wheel, or compiled here and cached; checked and loaded."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from cpulm.errors import ResourceError
from cpulm.native.library_cache import SCRATCH_PREFIX, UnsafeCacheError, find, is_damaged, make_private, store
from cpulm.native.signatures import NAME_LISTS, RESULTS, SIGNATURES, TYPES

UNITS = ("kernels.cpp", "int8.cpp", "thread_pool.cpp")
"""Translation units; compiling them side by side halves the wait."""

FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
)
"""Without -ffast-math: numbers that are not finite have to stay so, or divergence goes unnoticed."""

COMPILE_SECONDS = 600.0
"""Time limit of a compiler. GCC 12 took two seconds, and over 120 at lowest priority on a busy machine."""


class KernelsUnavailableError(Exception):
    """The kernels cannot be compiled or loaded here; the message says why."""


def compile_kernels(command: str, version: str, cpu: str, cache: Path) -> tuple[Path, str]:
    """The shared library for this CPU, from ``cache`` or newly compiled.

    If ``cache`` cannot be used, the library is compiled into a temporary folder of this process.

    Args:
        command: of a C++ compiler that takes GCC's options; may be several words, as in ``ccache g++``.
        version: of the compiler.
        cpu: the CPU's name and instruction sets; every CPU gets a library of its own.

    Returns:
        The library, and a sentence for the user if the cache or a library in it could not be used, else "".

    Raises:
        KernelsUnavailableError: on Windows, and if the compiler fails.
    """
    if sys.platform == "win32":
        # GCC takes the stack for aligned to 64 bytes, and there it is to 16 (https://gcc.gnu.org/PR54412).
        raise KernelsUnavailableError("they are not compiled on Windows")
    key, suffix = _key(command, version, cpu), ".dylib" if sys.platform == "darwin" else ".so"
    note = ""
    try:
        make_private(cache)
        found, refused = find(cache, key, suffix)
        if found is not None:
            return found, ""
        if refused:
            note = f"a compiled library in {cache} was refused ({refused}) and compiled again"
        return _compile_into(cache, key, suffix, command), note
    except (OSError, ResourceError, UnsafeCacheError) as error:
        why = getattr(error, "strerror", None) or str(error)
        note = f"{cache} cannot keep them ({why}); set CPULM_CACHE to a folder of your own"
    try:
        temporary = Path(tempfile.mkdtemp(prefix="cpulm-kernels-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return _compile_into(temporary, key, suffix, command), note
    except (OSError, ResourceError) as error:
        raise KernelsUnavailableError(f"{note}; and a temporary folder failed too: {error}") from error


def check_shipped(library: Path) -> None:
    """Refuse a library of the wheel whose bytes have changed: a flipped bit gives wrong numbers in silence.

    Raises:
        KernelsUnavailableError: if it is damaged or cannot be read.
    """
    try:
        if not is_damaged(library):
            return
        why = "is damaged"
    except OSError as error:
        why = f"cannot be read: {error.strerror or error}"
    raise KernelsUnavailableError(f"{library.name}, which cpulm brought along, {why}; install cpulm again")


def sources() -> list[Path]:
    """The C++ files, which the library depends on."""
    folder = Path(__file__).parent
    return sorted((*folder.glob("*.cpp"), *folder.glob("*.h")))


def _key(command: str, version: str, cpu: str) -> str:
    """The digest of everything that decides the library's code."""
    digest = hashlib.blake2b(digest_size=12)
    for part in (command, version, cpu, *_flags(), *(path.read_text("utf-8") for path in sources())):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _compile_into(folder: Path, key: str, suffix: str, command: str) -> Path:
    compiler, source = shlex.split(command), Path(__file__).parent
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH_PREFIX) as scratch:
        objects = [str(Path(scratch) / f"{name}.o") for name in UNITS]
        steps = [
            [*compiler, *_flags(), "-c", str(source / name), "-o", made]
            for name, made in zip(UNITS, objects, strict=True)
        ]
        with ThreadPoolExecutor(len(steps)) as pool:
            list(pool.map(_run, steps))
        made = Path(scratch) / f"kernels{suffix}"
        _run([*compiler, *_flags(), "-shared", *objects, "-o", str(made)])
        return store(folder, key, made)


def _flags() -> list[str]:
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return [*FLAGS, "-mcpu=native" if arm else "-march=native", "-fPIC"]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KernelsUnavailableError(f"{command[0]} took over {COMPILE_SECONDS:.0f} s") from error
    except OSError as error:
        raise KernelsUnavailableError(f"{command[0]}: {error.strerror or error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise KernelsUnavailableError(
            f"{Path(command[0]).name}: {lines[0].strip() if lines else 'failed'}"[:200]
        )


@lru_cache(maxsize=4)
def load(library: Path) -> ctypes.CDLL:
    """The loaded library, which runs on one thread until :func:`use_openmp`, or an open pool.

    Raises:
        KernelsUnavailableError: if the system's loader refuses it, or its functions take other arguments
            than :data:`cpulm.native.signatures.SIGNATURES` says.
    """
    try:
        loaded = ctypes.CDLL(str(library))
        for name, codes in SIGNATURES.items():
            _declare(loaded, name, codes)
        for name in NAME_LISTS:
            function = getattr(loaded, name)
            function.argtypes, function.restype = [], ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise KernelsUnavailableError(str(error)) from error
    return loaded


def use_openmp(library: ctypes.CDLL, function: Callable[[str], int | None]) -> bool:
    """Give a library the functions of OpenMP, or take them away.

    Args:
        function: returns the address of the function of a name, or None.

    Returns:
        Whether the kernels now run on several threads, else on the calling thread alone.
    """
    names = library.cpulm_openmp_functions().decode().split()
    return bool(library.cpulm_use_openmp((ctypes.c_void_p * len(names))(*map(function, names))))


def _declare(library: ctypes.CDLL, name: str, codes: str) -> None:
    """Set the argument types of a function, which the library has to confirm."""
    signature, function = getattr(library, f"{name}_signature"), getattr(library, name)
    signature.restype = ctypes.c_char_p
    if (found := signature().decode()) != codes:
        raise KernelsUnavailableError(f"{name} takes {found!r}, and cpulm passes {codes!r}")
    function.argtypes = [TYPES[code] for code in codes]
    function.restype = RESULTS.get(name)
