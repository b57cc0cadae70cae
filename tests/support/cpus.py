"""The instruction sets of other CPUs, to test on one machine what another would choose."""

from __future__ import annotations

CPUS: dict[str, tuple[str, ...]] = {
    "AVX2": ("AVX2",),
    "AVX-512": ("AVX2", "AVX-512"),
    "VNNI": ("AVX2", "AVX-512", "AVX512-VNNI"),
    "VNNI and BF16": ("AVX2", "AVX-512", "AVX512-VNNI", "AVX512-BF16"),
    "AMX": ("AVX2", "AVX-512", "AVX-VNNI", "AVX512-VNNI", "AVX512-BF16", "AMX-BF16", "AMX-INT8"),
    "AVX-VNNI": ("AVX2", "AVX-VNNI"),
    "NEON": ("NEON",),
    "NEON-dotprod": ("NEON", "NEON-dotprod"),
    "NEON-i8mm": ("NEON", "NEON-dotprod", "NEON-i8mm", "NEON-bf16"),
}
