"""Processors from recorded /proc/cpuinfo texts (flags shortened) and synthetic /sys trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpulm.system.cpu import clean_model, worth_using
from cpulm.system.linux import cpu_model, instruction_sets, parse_cpu_list, parse_cpuinfo, read_linux

SAPPHIRE_RAPIDS = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8
cpu MHz\t\t: 2699.998
cache size\t: 107520 KB
siblings\t: 4
cpu cores\t: 2
flags\t\t: fpu vme sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 avx512f avx512dq avx512cd avx512bw \
avx512vl avx_vnni avx512_bf16 avx512vbmi avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8 flush_l1d
bugs\t\t: spectre_v1 spectre_v2

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
"""
ZEN_4 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 97
model name\t: AMD Ryzen 9 7950X 16-Core Processor
cpu MHz\t\t: 4200.000
flags\t\t: fpu sse4_2 avx f16c avx2 avx512f avx512dq avx512ifma avx512bw avx512vl avx512_bf16 avx512_vnni
"""
ZEN_3 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD Ryzen 7 5800X 8-Core Processor
flags\t\t: fpu sse4_2 avx f16c avx2 vaes vpclmulqdq
"""
GRAVITON_3 = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma \
lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp svei8mm \
svebf16 i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""
RASPBERRY_PI_5 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
CPU part\t: 0xd0b

Revision\t: c04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
APPLE_GUEST = """\
processor\t: 0
Features\t: fp asimd asimddp i8mm bf16
CPU implementer\t: 0x61
CPU part\t: 0x000
"""


@pytest.mark.parametrize(
    ("text", "model", "sets"),
    [
        (
            SAPPHIRE_RAPIDS,
            "Intel Xeon Platinum 8481C",
            ("AVX2", "AVX-512", "AVX-VNNI", "AVX512-VNNI", "AVX512-BF16", "AMX-BF16", "AMX-INT8"),
        ),
        (ZEN_4, "AMD Ryzen 9 7950X", ("AVX2", "AVX-512", "AVX512-VNNI", "AVX512-BF16")),
        (ZEN_3, "AMD Ryzen 7 5800X", ("AVX2",)),
        (GRAVITON_3, "Arm Neoverse-V1", ("NEON", "NEON-dotprod", "NEON-i8mm", "NEON-bf16", "SVE")),
        (RASPBERRY_PI_5, "Arm Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)", ("NEON", "NEON-dotprod")),
        (APPLE_GUEST, "Apple silicon, as a virtual machine", ("NEON", "NEON-dotprod", "NEON-i8mm")),
        ("processor: 0\nCPU part: 0xfff\n", "ARM implementer unknown part 0xfff", ()),
        ("", "unknown", ()),
    ],
)
def test_model_and_instruction_sets(text: str, model: str, sets: tuple[str, ...]) -> None:
    cpuinfo = parse_cpuinfo(text)
    assert cpu_model(cpuinfo) == model
    assert instruction_sets(cpuinfo) == sets


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("12th Gen Intel(R) Core(TM) i7-1260P", "12th Gen Intel Core i7-1260P"),
        ("Intel(R) Core(TM) i7-9700K CPU @ 3.60GHz", "Intel Core i7-9700K"),
        ("AMD EPYC 7763 64-Core Processor", "AMD EPYC 7763"),
        ("  ", "unknown"),
    ],
)
def test_model_names_lose_what_says_nothing(raw: str, clean: str) -> None:
    assert clean_model(raw) == clean


def test_cpu_list() -> None:
    assert parse_cpu_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cpu_list("\n") == set()
    with pytest.raises(ValueError, match="invalid literal"):
        parse_cpu_list("a-b")


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def threads(cpu: int, siblings: str) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": siblings + "\n"}


def test_two_cores_with_two_threads_each(tmp_path: Path) -> None:
    cache = "sys/devices/system/cpu/cpu0/cache"
    files = {
        "proc/cpuinfo": SAPPHIRE_RAPIDS,
        "sys/devices/system/cpu/online": "0-3\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3800000\n",
        **threads(0, "0,2"),
        **threads(1, "1,3"),
        **threads(2, "0,2"),
        **threads(3, "1,3"),
    }
    for index, level, kind, size in (
        (0, 1, "Data", "48K"),
        (1, 1, "Instruction", "32K"),
        (2, 2, "Unified", "2M"),
    ):
        files |= {
            f"{cache}/index{index}/level": f"{level}\n",
            f"{cache}/index{index}/type": f"{kind}\n",
            f"{cache}/index{index}/size": f"{size}\n",
        }
    cpu = read_linux(build(tmp_path, files), affinity={0, 1, 2, 3})
    assert (cpu.physical_cores, cpu.logical_cores, cpu.usable_logical, cpu.usable_physical) == (2, 4, 4, 2)
    assert cpu.usable_performance is None
    assert cpu.caches == {"L1d": 48 * 1024, "L2": 2 * 1024**2}
    assert cpu.max_mhz == 3800

    bound = read_linux(tmp_path, affinity={0, 2})
    assert (bound.physical_cores, bound.usable_logical, bound.usable_physical) == (2, 2, 1)


def test_cores_without_topology_come_from_cpuinfo(tmp_path: Path) -> None:
    root = build(tmp_path, {"proc/cpuinfo": SAPPHIRE_RAPIDS, "sys/devices/system/cpu/online": "0-3"})
    cpu = read_linux(root, affinity={0, 1, 2, 3})
    assert (cpu.physical_cores, cpu.usable_physical, cpu.max_mhz) == (2, 2, 2699.998)


def test_intel_hybrid(tmp_path: Path) -> None:
    """Two fast cores with two threads each, and four slow ones."""
    files = {
        "proc/cpuinfo": "model name: 12th Gen Intel(R) Core(TM)\n",
        "sys/devices/system/cpu/online": "0-7",
        "sys/devices/cpu_core/cpus": "0-3\n",
        "sys/devices/cpu_atom/cpus": "4-7\n",
        **threads(0, "0-1"),
        **threads(1, "0-1"),
        **threads(2, "2-3"),
        **threads(3, "2-3"),
    }
    for slow in range(4, 8):
        files |= threads(slow, str(slow))
    cpu = read_linux(build(tmp_path, files), affinity=set(range(8)))
    assert (cpu.physical_cores, cpu.usable_physical, cpu.usable_performance) == (6, 6, 2)
    assert read_linux(tmp_path, affinity={4, 5}).usable_performance == 0


def test_arm_big_little_by_capacity(tmp_path: Path) -> None:
    files = {"proc/cpuinfo": GRAVITON_3, "sys/devices/system/cpu/online": "0-3"}
    for cpu, capacity in enumerate((300, 300, 800, 1024)):
        files |= {f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": f"{capacity}\n", **threads(cpu, str(cpu))}
    found = read_linux(build(tmp_path, files), affinity={0, 1, 2, 3})
    assert (found.usable_physical, found.usable_performance) == (4, 2)


def test_a_system_that_reports_nothing(tmp_path: Path) -> None:
    cpu = read_linux(tmp_path, affinity={0})
    assert (cpu.model, cpu.usable_logical, cpu.usable_physical, cpu.caches) == ("unknown", 1, 1, {})


@pytest.mark.parametrize(
    ("physical", "performance", "worth"),
    [(8, None, 8), (8, 8, 8), (14, 6, 6), (10, 2, 10), (8, 4, 4), (12, 8, 8), (4, 0, 4)],
)
def test_slow_cores_help_only_where_they_are_many(physical: int, performance: int | None, worth: int) -> None:
    assert worth_using(physical, performance) == worth
