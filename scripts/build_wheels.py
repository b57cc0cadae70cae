"""Builds what is published: a wheel with compiled kernels for each platform, one for all others, the sdist.

    pip install -e '.[wheels]'
    python scripts/build_wheels.py                               # everything, into dist/
    python scripts/build_wheels.py manylinux_2_28_x86_64         # one platform
    python scripts/build_wheels.py --libraries build/kernels     # the libraries alone

Zig's C++ compiler, which is Clang with the headers and libraries of every platform, compiles for all of them
on one machine, without an SDK. The same sources and the same version of ziglang give the same bytes.

It is a script and not a step of every installation: an installation from source needs no compiler of 400 MB,
because it compiles the kernels for its own CPU at the first run. Hatch's hook only adds what is made here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from wheel_hook import VARIABLE

from cpulm.native.library import FLAGS, UNITS
from cpulm.native.library_cache import name_with_digest

ROOT = Path(__file__).resolve().parent.parent


class Platform(NamedTuple):
    """Zig's name of a platform, the suffix of its libraries, and its variants."""

    target: str
    suffix: str
    variants: tuple[str, ...]


PLATFORMS = {
    "manylinux_2_28_x86_64": Platform(
        "x86_64-linux-gnu.2.28", ".so", ("avx2", "avx512", "avxvnni", "avx512vnni")
    ),
    "manylinux_2_28_aarch64": Platform("aarch64-linux-gnu.2.28", ".so", ("neon", "dotprod", "i8mm")),
    "macosx_11_0_arm64": Platform("aarch64-macos.11.0", ".dylib", ("dotprod", "i8mm")),  # all have dotprod
    "macosx_11_0_x86_64": Platform("x86_64-macos.11.0", ".dylib", ("avx2", "avx512", "avx512vnni")),
    "win_amd64": Platform("x86_64-windows-gnu", ".dll", ("avx2", "avx512", "avxvnni", "avx512vnni")),
}
"""By the tag of the wheel."""

CPUS = {
    "avx2": "x86_64_v3",
    "avx512": "x86_64_v3+avx512f",
    "avxvnni": "x86_64_v3+avxvnni",
    "avx512vnni": "x86_64_v4+avx512vnni-prefer_256_bit",
    "neon": "generic",
    "dotprod": "generic+dotprod",
    "i8mm": "generic+dotprod+i8mm",
}
"""What Zig may use for each variant: no more than every CPU with its instruction set has."""


def compile_variant(platform: Platform, variant: str, folder: Path) -> Path:
    """The library of one variant in ``folder``, named with the digest of its bytes.

    Raises:
        CalledProcessError: if the compiler fails; it has said why.
    """
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", platform.target, f"-mcpu={CPUS[variant]}"]
    zig += [] if platform.suffix == ".dll" else ["-fPIC"]
    with tempfile.TemporaryDirectory() as scratch:
        made, objects = Path(scratch) / f"kernels{platform.suffix}", [f"{unit}.o" for unit in UNITS]
        for unit, compiled in zip(UNITS, objects, strict=True):
            source = str(ROOT / "cpulm" / "native" / unit)
            subprocess.run([*zig, *FLAGS, "-fno-rtti", "-c", source, "-o", compiled], check=True, cwd=scratch)
        link = [*zig, "-nostdlib++", "-shared", "-s", *objects, "-o", str(made)]
        subprocess.run(link, check=True, cwd=scratch)
        content = made.read_bytes()
    library = folder / name_with_digest(variant, content, platform.suffix)
    library.write_bytes(content)
    return library


def compile_all(tags: list[str], folder: Path) -> None:
    """Compile every variant of the platforms ``tags`` into ``folder``/TAG."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = []
        for tag in tags:
            (folder / tag).mkdir(parents=True)
            for variant in PLATFORMS[tag].variants:
                waiting.append(pool.submit(compile_variant, PLATFORMS[tag], variant, folder / tag))
        for each in waiting:
            library = each.result()
            print(
                f"{library.parent.name}: {library.name}, {library.stat().st_size / 1024:.0f} KiB", flush=True
            )


def build(*what: str, out: Path, libraries: Path | None = None) -> None:
    """Build a wheel or the sdist; ``libraries`` makes it the wheel of a platform."""
    environ = {**os.environ, "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH") or _last_change()}
    if libraries is not None:
        environ[VARIABLE] = str(libraries)
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, env=environ)


def _last_change() -> str:
    """The time of the last commit, which every copy of it gives its files."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "platforms", nargs="*", metavar="PLATFORM", help=f"default: all of {', '.join(PLATFORMS)}"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--libraries", type=Path, help="compile into this new folder, and build no wheels")
    asked = parser.parse_args()
    if unknown := set(asked.platforms) - set(PLATFORMS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PLATFORMS)}")
    tags = asked.platforms or list(PLATFORMS)
    if asked.libraries is not None:
        compile_all(tags, asked.libraries)
        return
    with tempfile.TemporaryDirectory() as scratch:
        compile_all(tags, Path(scratch))
        for tag in tags:
            build("--wheel", out=asked.out, libraries=Path(scratch) / tag)
    if not asked.platforms:
        build("--wheel", "--sdist", out=asked.out)


if __name__ == "__main__":
    main()
