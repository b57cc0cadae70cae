"""The compiled kernels that a platform wheel ships: one library for each level of instruction sets."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

SHIPPED = Path(__file__).parent / "native" / "libraries"
"""The folder of the shipped libraries; a source checkout and the wheel for every platform have none."""


class Variant(NamedTuple):
    """``name`` stands in the library's file name; the CPU needs ``instructions``, by the usual name."""

    name: str
    instructions: str


VARIANTS = (
    Variant("avx512vnni", "AVX512-VNNI"),
    Variant("avxvnni", "AVX-VNNI"),
    Variant("avx512", "AVX-512"),
    Variant("avx2", "AVX2"),
    Variant("i8mm", "NEON-i8mm"),
    Variant("dotprod", "NEON-dotprod"),
    Variant("neon", "NEON"),
)
"""The first that the CPU can run is used."""


def shipped_library(instruction_sets: Collection[str]) -> tuple[Path, Variant] | tuple[None, None]:
    """Return the fastest shipped library for a CPU with these instruction sets; None if there is none."""
    for variant in VARIANTS:
        if variant.instructions in instruction_sets:
            for library in sorted(SHIPPED.glob(f"kernels-{variant.name}-*")):
                return library, variant
    return None, None
