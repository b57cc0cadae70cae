"""Finds torch, the C++ compiler and the GPUs without importing torch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cpulm.system.cpu import UNKNOWN
from cpulm.system.small_file import read_small_file

PROBE_SECONDS = 3.0
"""The time after which another program that does not answer counts as missing."""


@dataclass(frozen=True)
class Torch:
    """An installed torch. ``accelerator`` is the one it was built for, ``CUDA 12.8`` or ``ROCm 6.4``, None
    for the CPU only; ``maths`` names its matrix product libraries."""

    version: str
    accelerator: str | None
    maths: str


@dataclass(frozen=True)
class Compiler:
    """A working C++ compiler: its command with options, quoted for a shell, and its version.

    ``lacks`` is what is missing for torch.compile, in words; the kernels need nothing but the compiler.
    """

    command: str
    version: str
    lacks: str = ""


@dataclass(frozen=True)
class Gpu:
    """``backend`` is ``cuda`` or ``mps``; ``memory_bytes`` is None if it is shared with the machine."""

    name: str
    backend: str
    memory_bytes: int | None
    compute_capability: str | None = None


def read_torch(folder: Path | None = None) -> Torch | None:
    """Read torch's version from its files; None if torch is not installed.

    Args:
        folder: the package's folder; if None, the one that ``import torch`` would use.
    """
    folder = folder or _torch_folder()
    if folder is None:
        return None
    source = read_small_file(folder / "version.py")
    version = _python_string(source, "__version__") or UNKNOWN
    cuda, rocm = _python_string(source, "cuda"), _python_string(source, "hip")
    accelerator = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else None
    return Torch(version, accelerator, maths_library(folder))


def maths_library(folder: Path) -> str:
    """Return the libraries named by torch's build configuration, or else by its shared libraries."""
    config = read_small_file(folder / "include/ATen/Config.h")
    enabled = set(re.findall(r"#define AT_(\w+)_ENABLED\(\) 1", config))
    names = ["MKL"] if "MKL" in enabled else []
    libraries = [
        path.name.lower() for place in ("lib", ".libs", "../torch.libs") for path in _files(folder / place)
    ]
    for part, name in (("openblas", "OpenBLAS"), ("nvpl", "NVPL"), ("armpl", "Arm PL"), ("mkl_", "MKL")):
        if name not in names and any(part in library for library in libraries):
            names.append(name)
    if not names and sys.platform == "darwin":
        names.append("Accelerate")
    if "MKLDNN" in enabled:
        names.append("oneDNN with Arm Compute Library" if "MKLDNN_ACL" in enabled else "oneDNN")
    return " + ".join(names) or UNKNOWN


def find_compiler(environ: Mapping[str, str] = os.environ) -> tuple[Compiler | None, str]:
    """Find a C++ compiler; if there is none, return the reason.

    If ``CXX`` is set, only it counts, because torch.compile then tries no other. A compiler counts only if
    it runs. The first that can be used by torch.compile is preferred to the first that cannot.
    """
    asked = environ.get("CXX")
    found: list[Compiler] = []
    problem = f"CXX={asked} is not found" if asked else "no C++ compiler was found"
    for name in [asked] if asked else _compiler_names():
        command, *options = _words(name, environ) or [""]
        if not command or _is_apple_stub(command):
            continue
        if Path(command).stem.lower() == "cl":
            version, wrong, lacks = *_ask_msvc(command), ""
        else:
            version, wrong, lacks = _ask_compiler([command, *options], environ)
        if wrong:
            problem = f"{Path(command).name}: {wrong}"
            continue
        words = command if os.name == "nt" else shlex.join((command, *options))
        found.append(Compiler(words, version, lacks or _missing_python_header()))
        if not found[-1].lacks:
            return found[-1], ""
    return (found[0], "") if found else (None, problem)


def _words(name: str, environ: Mapping[str, str]) -> list[str]:
    """Return the command's full path and its options, as in ``CXX="ccache g++"``; empty if not found."""
    readings = [[name]]
    if os.name != "nt":
        with suppress(ValueError):  # a quotation mark that nothing closes
            readings.append(shlex.split(name))
    for command, *options in filter(None, readings):
        if found := shutil.which(command, path=environ.get("PATH")):
            return [found, *options]
    return []


def parse_macros(text: str) -> str:
    """Parse the compiler's name and version from its predefined macros (``-E -dM``)."""
    match = re.search(r'^#define __VERSION__ "(.*)"$', text, re.MULTILINE)
    version = match.group(1) if match else UNKNOWN
    return version if not version[:1].isdigit() else f"GCC {version}"


def read_gpus(
    architecture: str, environ: Mapping[str, str] = os.environ, platform: str = sys.platform
) -> tuple[Gpu, ...]:
    """Find NVIDIA GPUs by ``nvidia-smi``, and the GPU of Apple silicon.

    An empty ``CUDA_VISIBLE_DEVICES``, or -1, hides the NVIDIA GPUs from torch, and so from this function.
    """
    if platform == "darwin":
        return (Gpu("Apple GPU", "mps", None),) if architecture == "arm64" else ()
    if environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return ()
    command = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if command is None:
        return ()
    for columns in ("name,memory.total,compute_cap", "name,memory.total"):  # older drivers lack the third
        answer = _ask([command, f"--query-gpu={columns}", "--format=csv,noheader,nounits"])
        if answer is not None and answer.returncode == 0:
            return parse_nvidia_smi(answer.stdout)
    return ()


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Parse the GPUs in lines of ``name, memory in MiB, compute capability``."""
    gpus = []
    for line in text.splitlines():
        name, *rest = (part.strip() for part in line.split(","))
        if name and rest:
            memory = int(rest[0]) * 1024**2 if rest[0].isdigit() else None
            capability = rest[1] if len(rest) > 1 and re.fullmatch(r"\d+\.\d+", rest[1]) else None
            gpus.append(Gpu(name, "cuda", memory, capability))
    return tuple(gpus)


def _compiler_names() -> tuple[str, ...]:
    names = {"win32": ("cl", "clang-cl", "g++", "clang++"), "darwin": ("clang++", "g++", "c++")}
    return names.get(sys.platform, ("g++", "clang++", "c++"))


def _is_apple_stub(command: str) -> bool:
    """Whether this is the clang++ of macOS that only opens a dialog to install the developer tools."""
    if sys.platform == "darwin" and command.startswith("/usr/bin/"):
        answer = _ask(["/usr/bin/xcode-select", "--print-path"])
        return answer is None or answer.returncode != 0
    return False


def _ask_compiler(command: list[str], environ: Mapping[str, str]) -> tuple[str, str, str]:
    """Return version and problem of a compiler with GCC's options, and what it lacks for torch.compile."""
    prefixes = [environ.get("OMP_PREFIX", ""), environ.get("CONDA_PREFIX", "")]
    if sys.platform == "darwin":
        prefixes += ["/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"]
    folders = [f"-I{Path(prefix) / 'include'}" for prefix in prefixes if prefix]
    # The kernels include these headers; torch.compile also needs that of OpenMP.
    source = "#include <cmath>\n#include <cstdlib>\n#if __has_include(<omp.h>)\n#define HAS_OMP\n#endif\n"
    answer = _ask([*command, "-std=c++17", "-E", "-dM", "-x", "c++", *folders, "-"], source)
    if answer is None:
        return "", "does not answer", ""
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        return "", next(iter(lines), f"ends with code {answer.returncode}"), ""
    has_openmp = "#define HAS_OMP" in answer.stdout
    return parse_macros(answer.stdout), "", "" if has_openmp else "OpenMP's header omp.h is missing"


def _ask_msvc(command: str) -> tuple[str, str]:
    """Return version and problem of Microsoft's compiler, which prints its version without arguments."""
    answer = _ask([command])
    first = next(iter((answer.stderr + answer.stdout).strip().splitlines()), "") if answer else ""
    match = re.search(r"\d+\.\d+\.\d+", first)
    return (f"MSVC {match.group(0)}", "") if match else ("", "does not answer as Microsoft's compiler does")


def _missing_python_header() -> str:
    """Return the problem if Python's C headers are missing: compiled steps are Python extensions."""
    import sysconfig

    try:
        found = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    except OSError:  # a folder without permission
        found = False
    return "" if found else "Python.h is missing (on Debian: the package python3-dev)"


def _torch_folder() -> Path | None:
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _python_string(source: str, name: str) -> str | None:
    match = re.search(rf"^{name}\s*(?::[^=]*)?=\s*['\"]([^'\"]*)['\"]", source, re.MULTILINE)
    return match.group(1) if match else None


def _ask(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str] | None:
    """Run another program with ``text`` as input; None if it cannot be run or takes too long."""
    try:
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PROBE_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
