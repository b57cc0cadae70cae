"""Processors of macOS from recorded sysctl outputs, and of Windows from the kernel's structures."""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from pathlib import Path

import pytest

from cpulm.system.cpu import architecture
from cpulm.system.macos import read_sysctl
from cpulm.system.windows import _CPUID, parse_topology, usable_cores, vector_extensions

M3_MAX = """\
hw.ncpu: 16
hw.memsize: 137438953472
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.optional.arm64: 1
hw.perflevel1.physicalcpu: 4
hw.perflevel1.l1dcachesize: 65536
hw.perflevel0.physicalcpu: 12
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 16777216
hw.nperflevels: 2
hw.physicalcpu: 16
hw.logicalcpu: 16
hw.l1dcachesize: 65536
hw.l2cachesize: 4194304
machdep.cpu.brand_string: Apple M3 Max
"""
INTEL_MAC = """\
hw.physicalcpu: 4
hw.logicalcpu: 8
hw.machine: x86_64
hw.cpufrequency_max: 2300000000
hw.l1dcachesize: 32768
hw.l2cachesize: 262144
hw.l3cachesize: 6291456
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
machdep.cpu.brand_string: Intel(R) Core(TM) i5-8259U CPU @ 2.30GHz
"""


def test_apple_silicon() -> None:
    cpu = read_sysctl(M3_MAX)
    assert (cpu.model, cpu.architecture) == ("Apple M3 Max", "arm64")
    assert (cpu.physical_cores, cpu.logical_cores, cpu.usable_physical, cpu.usable_performance) == (
        16,
        16,
        16,
        12,
    )
    assert cpu.instruction_sets == ("NEON", "NEON-dotprod", "NEON-i8mm", "NEON-bf16")
    assert cpu.caches == {"L1d": 131072, "L2": 16777216}


def test_intel_mac() -> None:
    cpu = read_sysctl(INTEL_MAC)
    assert (cpu.model, cpu.architecture, cpu.max_mhz) == ("Intel Core i5-8259U", "x86_64", 2300.0)
    assert (cpu.physical_cores, cpu.logical_cores, cpu.usable_performance) == (4, 8, None)
    assert cpu.instruction_sets == ("AVX2",)
    assert cpu.caches == {"L1d": 32768, "L2": 262144, "L3": 6291456}


def core(mask: int, efficiency: int, group: int = 0) -> bytes:
    """A PROCESSOR_RELATIONSHIP record of one core."""
    smt = int(mask.bit_count() > 1)
    return struct.pack("<IIBB20xHQH6x", 0, 48, smt, efficiency, 1, mask, group)


def cache(level: int, size: int, kind: int) -> bytes:
    """A CACHE_RELATIONSHIP record; ``kind`` is 0 unified, 1 instructions, 2 data."""
    return struct.pack("<IIBBHII18xHQH6x", 2, 56, level, 8, 64, size, kind, 1, 1, 0)


def test_windows_hybrid() -> None:
    records = [core(0b11, 1), core(0b1100, 1), core(0b10000, 0), core(0b100000, 0), core(0b1000000, 0)]
    caches = [cache(1, 49152, 2), cache(1, 32768, 1), cache(2, 1310720, 0), cache(3, 12 << 20, 0)]
    topology = parse_topology(b"".join(records + caches))
    assert topology.caches == {"L1d": 49152, "L2": 1310720, "L3": 12 << 20}
    assert usable_cores(topology, affinity=0) == (5, 2)
    assert usable_cores(topology, affinity=0b1110000) == (3, 0)
    assert usable_cores(topology, affinity=0b10011) == (2, 1)


def test_windows_alike_cores_in_two_groups() -> None:
    topology = parse_topology(core(0b11, 0) + core(0b1100, 0) + core(0b11, 0, group=1))
    assert usable_cores(topology, affinity=0b11) == (2, None)
    assert usable_cores(parse_topology(b""), affinity=0b11) == (0, None)


@pytest.mark.skipif(sys.platform != "linux" or architecture() != "x86_64", reason="runs x86 code of Windows")
def test_windows_code_for_cpuid_gives_what_linux_tells() -> None:
    code = mmap.mmap(-1, len(_CPUID), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_CPUID)
    place = ctypes.c_char.from_buffer(code)
    # Linux passes the third, fourth and fifth argument where Windows passes the second, first and third.
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_uint32] * 4, ctypes.c_void_p)(ctypes.addressof(place))

    def cpuid(leaf: int, subleaf: int) -> list[int]:
        out = (ctypes.c_uint32 * 4)()
        call(0, 0, subleaf, leaf, out)
        return list(out)

    _, b, c, d = cpuid(0, 0)
    assert struct.pack("<III", b, d, c) in (b"GenuineIntel", b"AuthenticAMD", b"HygonGenuine")
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    wanted = {"avx_vnni", "avx512_vnni", "avx512_bf16"} & flags
    assert vector_extensions(cpuid, flags) == wanted


def test_windows_extensions_need_saved_registers() -> None:
    leaves = {(0, 0): (13, 0, 0, 0), (7, 0): (1, 0, 1 << 11, 0), (7, 1): (1 << 4 | 1 << 5, 0, 0, 0)}

    def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        return leaves[leaf, subleaf]

    assert vector_extensions(cpuid, {"avx2", "avx512f"}) == {"avx_vnni", "avx512_vnni", "avx512_bf16"}
    assert vector_extensions(cpuid, {"avx2"}) == {"avx_vnni"}
    assert vector_extensions(cpuid, set()) == set()
    leaves[0, 0] = (1, 0, 0, 0)
    assert vector_extensions(cpuid, {"avx2"}) == set()
