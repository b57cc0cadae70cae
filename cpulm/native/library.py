"""The kernels compiled on the machine that uses them, once for each compiler, CPU and source."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

UNITS = ("kernels.cpp", "int8.cpp")
"""Compiled side by side, which halves the wait."""
HEADERS = (
    *("attention.h", "decode.h", "small_matmul.h", "muon.h", "int8_product.h"),
    *("thread_range.h", "vector.h"),
)
COMPILE_SECONDS = 120.0
"""How long a compiler may take; GCC 12 took two seconds."""


class KernelsUnavailableError(Exception):
    """The kernels cannot be compiled or loaded here; the message says why."""


def compiled(command: str, version: str, cpu: str, cache: Path) -> Path:
    """The shared library for this CPU, from ``cache`` or made anew.

    Args:
        command: of a C++ compiler that takes GCC's options.
        version: of the compiler.
        cpu: what the CPU calls itself, with its instruction sets: another CPU gets a library of its own.

    Raises:
        KernelsUnavailableError: on Windows, and where the compiler fails or the cache cannot be written.
    """
    if sys.platform == "win32":
        # GCC aligns its stack to 16 bytes there and takes it for 64 (https://gcc.gnu.org/PR54412).
        raise KernelsUnavailableError("they are not compiled on Windows")
    folder = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=12)
    for part in (version, cpu, *_flags(), *((folder / name).read_text("utf-8") for name in UNITS + HEADERS)):
        digest.update(part.encode() + b"\0")
    library = cache / f"kernels-{digest.hexdigest()}{'.dylib' if sys.platform == 'darwin' else '.so'}"
    if library.is_file():
        return library
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache, prefix=".kernels-") as scratch:
            objects = [str(Path(scratch) / f"{name}.o") for name in UNITS]
            steps = [
                [command, *_flags(), "-c", str(folder / name), "-o", made]
                for name, made in zip(UNITS, objects, strict=True)
            ]
            with ThreadPoolExecutor(len(steps)) as pool:
                list(pool.map(_run, steps))
            made = Path(scratch) / library.name
            _run([command, *_flags(), "-shared", *objects, "-o", str(made)])
            made.replace(library)
    except OSError as error:
        raise KernelsUnavailableError(f"{cache}: {error.strerror or error}") from error
    return library


def _flags() -> list[str]:
    arm = platform.machine().lower() in ("arm64", "aarch64")
    # Nothing of -ffast-math: numbers that are not finite have to stay so, or divergence goes unnoticed.
    flags = ["-std=c++17", "-O3", "-mcpu=native" if arm else "-march=native", "-ffp-contract=fast"]
    flags += ["-fno-math-errno", "-fno-trapping-math", "-fPIC"]
    if sys.platform == "darwin":  # torch brings the OpenMP library, which is loaded already
        return [*flags, "-Xclang", "-fopenmp", "-undefined", "dynamic_lookup"]
    return [*flags, "-fopenmp"]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KernelsUnavailableError(f"{command[0]} took over {COMPILE_SECONDS:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise KernelsUnavailableError(
            f"{Path(command[0]).name}: {lines[0].strip() if lines else 'failed'}"[:200]
        )


@lru_cache(maxsize=4)
def opened(library: Path) -> ctypes.CDLL:
    """The loaded library. Torch is to be loaded before it, so that both share one OpenMP.

    Raises:
        KernelsUnavailableError: where the system's loader refuses it.
    """
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelsUnavailableError(str(error)) from error
