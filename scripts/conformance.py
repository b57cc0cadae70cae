"""Run all kernels of the libraries that are shipped against plain loops, each on a CPU with its instructions.

    pip install -e '.[wheels]'; apt-get install qemu-user libc6-arm64-cross wine64
    python scripts/build_wheels.py --libraries build/kernels
    python scripts/conformance.py build/kernels [PLATFORM/VARIANT...]

A library runs on this CPU if that has its instructions, else under an emulator that is installed: qemu for
ARM, wine for Windows. Without one it was only compiled, and its line says so. No emulator that is fast
enough has AVX-512 or VNNI. Exits with 1 if a kernel is wrong.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from cpulm.system.machine import read_machine

ROOT = Path(__file__).resolve().parent.parent
SOURCE, INCLUDES = ROOT / "tests" / "native" / "conformance" / "conformance.cpp", ROOT / "cpulm" / "native"

TARGETS = {
    "manylinux_2_28_x86_64": "x86_64-linux-gnu.2.28",
    "manylinux_2_28_aarch64": "aarch64-linux-gnu.2.28",
    "win_amd64": "x86_64-windows-gnu",
}
"""Zig's names of the platforms whose programs can be run somewhere on Linux."""


class Variant(NamedTuple):
    """What a variant of the kernels says of itself, and where it runs.

    Attributes:
        lanes: float32 numbers in one vector.
        int8: whether it has instructions for int8 products.
        needs: the instruction set of an x86 CPU that runs it.
        model: of the CPU in qemu, for ARM; empty for x86.
    """

    lanes: int
    int8: bool
    needs: str
    model: str


VARIANTS = {
    "avx2": Variant(8, False, "AVX2", ""),
    "avxvnni": Variant(8, True, "AVX-VNNI", ""),
    "avx512": Variant(16, False, "AVX-512", ""),
    "avx512vnni": Variant(16, True, "AVX512-VNNI", ""),
    "neon": Variant(4, False, "", "cortex-a53"),
    "dotprod": Variant(4, True, "", "cortex-a76"),
    "i8mm": Variant(4, True, "", "max"),
}


def compile_program(platform: str) -> Path:
    """The program that calls a library, for the least CPU of a platform."""
    program = ROOT / "build" / f"conformance-{platform}.exe"
    program.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "ziglang", "c++", "-target", TARGETS[platform], "-std=c++17", "-O2"]
    command += ["-I", str(INCLUDES), str(SOURCE), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def launcher(platform: str, variant: Variant, instruction_sets: tuple[str, ...]) -> list[str] | None:
    """The words before the program's own on the command line; None if it cannot be run from one here."""
    if platform == "manylinux_2_28_aarch64" and shutil.which("qemu-aarch64"):
        return ["qemu-aarch64", "-cpu", variant.model, "-L", "/usr/aarch64-linux-gnu"]
    if variant.needs not in instruction_sets:
        return None
    if platform == "manylinux_2_28_x86_64":
        return []
    wine = shutil.which("wine64") or shutil.which("wine64", path="/usr/lib/wine")
    return [wine] if platform == "win_amd64" and wine else None


def run(platform: str, library: Path, variant: Variant) -> tuple[str, str] | None:
    """How a library was run, and what the program printed; None if that is not possible here."""
    start = launcher(platform, variant, read_machine().instruction_sets)
    if start is None:
        return None
    command = [*start, str(compile_program(platform)), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return " ".join(start) or "this CPU", done.stdout


def main() -> int:
    folder, *wanted = sys.argv[1:]
    failed = False
    for library in sorted(Path(folder).resolve().glob("*/*")):
        platform = library.parent.name
        name = next((each for each in VARIANTS if each in library.name.split("-")), None)
        if name is None or (wanted and f"{platform}/{name}" not in wanted):
            continue
        variant = VARIANTS[name]
        done = run(platform, library, variant)
        right = True
        if done is not None:
            lines = done[1].replace("\r", "").splitlines()
            says = f"lanes {variant.lanes}, fast int8 {'yes' if variant.int8 else 'no'}"
            right = says in lines and "all kernels agree" in lines
        if done is not None and not right:
            sys.stdout.write(done[1])
        how = "compiled, not run" if done is None else f"{'passed' if right else 'FAILED'}: {done[0]}"
        sys.stdout.write(f"{platform}/{name}: {how}\n")
        sys.stdout.flush()
        failed = failed or not right
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
