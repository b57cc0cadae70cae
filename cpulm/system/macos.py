"""Reads processors from macOS's sysctl.

Source: Apple's page "Determining Instruction Set Characteristics" for the names under hw.optional.
"""

from __future__ import annotations

from cpulm.system.cpu import UNKNOWN, Cpu, clean_model, logical_count, name_instruction_sets

_OPTIONAL = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
    "hw.optional.neon": "neon",
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}


def read_sysctl(text: str) -> Cpu:
    """Parse the processors in the output of ``sysctl hw machdep.cpu``, one ``name: value`` per line.

    macOS has neither affinity nor containers, so all cores are usable.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(": ")
        if colon:
            values[key.strip()] = value.strip()
    logical = _number(values, "hw.logicalcpu") or _number(values, "hw.ncpu") or logical_count()
    physical = _number(values, "hw.physicalcpu") or logical
    # level 0 is the fastest kind of core; machines with one kind report no levels, or only one
    levels = _number(values, "hw.nperflevels")
    performance = _number(values, "hw.perflevel0.physicalcpu") if levels > 1 else 0
    apple = values.get("hw.optional.arm64") == "1"
    flags = {flag for name, flag in _OPTIONAL.items() if values.get(name) == "1"}
    if apple:
        flags.add("neon")
    hertz = _number(values, "hw.cpufrequency_max")
    return Cpu(
        model=clean_model(values.get("machdep.cpu.brand_string", UNKNOWN)),
        architecture="arm64" if apple else values.get("hw.machine", "x86_64"),
        physical_cores=physical,
        logical_cores=logical,
        usable_logical=logical,
        usable_physical=physical,
        usable_performance=performance or None,
        instruction_sets=name_instruction_sets(flags),
        caches=_caches(values),
        max_mhz=hertz / 1e6 if hertz else None,
    )


def _caches(values: dict[str, str]) -> dict[str, int]:
    sizes = {}
    for name, key in (("L1d", "l1dcachesize"), ("L2", "l2cachesize"), ("L3", "l3cachesize")):
        size = _number(values, f"hw.perflevel0.{key}") or _number(values, f"hw.{key}")
        if size:
            sizes[name] = size
    return sizes


def _number(values: dict[str, str], key: str) -> int:
    text = values.get(key, "")
    return int(text) if text.isdigit() else 0
