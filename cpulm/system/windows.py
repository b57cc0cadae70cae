"""Reads processors from Windows, by system calls and the registry through the standard library.

Sources: the Windows SDK's winnt.h for PF_* numbers and SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cpulm.system.cpu import UNKNOWN, Cpu, architecture, clean_model, logical_count, name_instruction_sets

_FEATURES = {
    "amd64": {40: "avx2", 41: "avx512f"},
    "arm64": {19: "neon", 43: "asimddp", 46: "sve", 47: "sve2", 66: "i8mm", 68: "bf16"},
}
_CPUID = bytes.fromhex("53 89c8 89d1 0fa2 418900 41895804 41894808 4189500c 5b c3")
"""x86 code of ``void cpuid(uint32 leaf, uint32 subleaf, uint32 out[4])`` in Windows' calling convention:
Windows does not tell of VNNI, and Python has no such function."""
_CORE, _CACHE, _ALL = 0, 2, 0xFFFF
_GROUP_AFFINITY = struct.Struct("<QH6x")


@dataclass(frozen=True)
class Topology:
    """``cores`` holds, for each physical core, its group, the mask of its logical processors and its
    efficiency class: higher is faster."""

    cores: tuple[tuple[int, int, int], ...] = ()
    caches: dict[str, int] = field(default_factory=dict)


def parse_topology(buffer: bytes) -> Topology:
    """Parse the records of GetLogicalProcessorInformationEx on 64-bit Windows."""
    cores: list[tuple[int, int, int]] = []
    caches: dict[str, int] = {}
    at = 0
    while at + 8 <= len(buffer):
        relation, size = struct.unpack_from("<II", buffer, at)
        if size < 8:
            break
        if relation == _CORE:
            efficiency = buffer[at + 9]
            mask, group = _GROUP_AFFINITY.unpack_from(buffer, at + 32)
            cores.append((group, mask, efficiency))
        elif relation == _CACHE:
            level, _, _, cache_bytes, kind = struct.unpack_from("<BBHII", buffer, at + 8)
            if kind in (0, 2):  # unified or data
                name = "L1d" if level == 1 else f"L{level}"
                caches[name] = max(cache_bytes, caches.get(name, 0))
        at += size
    return Topology(tuple(cores), caches)


def vector_extensions(cpuid: Callable[[int, int], Sequence[int]], usable: set[str]) -> set[str]:
    """Return Linux's names of the x86 extensions that Windows does not tell of.

    Args:
        cpuid: returns EAX, EBX, ECX and EDX of a leaf and subleaf.
        usable: the names of those extensions whose registers Windows saves.
    """
    if cpuid(0, 0)[0] < 7:
        return set()
    most, _, ecx, _ = cpuid(7, 0)
    eax = cpuid(7, 1)[0] if most >= 1 else 0
    found = {
        "avx_vnni": "avx2" in usable and eax >> 4 & 1,
        "avx512_vnni": "avx512f" in usable and ecx >> 11 & 1,
        "avx512_bf16": "avx512f" in usable and eax >> 5 & 1,
    }
    return {name for name, there in found.items() if there}


def usable_cores(topology: Topology, affinity: int) -> tuple[int, int | None]:
    """Return the usable physical cores, and how many are of the fastest kind if there are several kinds.

    ``affinity`` is the process's mask within processor group 0, to which it applies; 0 means none.
    """
    usable = [core for core in topology.cores if core[0] != 0 or not affinity or core[1] & affinity]
    classes = {efficiency for _, _, efficiency in topology.cores}
    if len(classes) < 2:
        return len(usable), None
    return len(usable), sum(1 for core in usable if core[2] == max(classes))


if sys.platform == "win32":

    def _registry() -> tuple[str, float | None]:
        """Model and MHz of processor 0 as given by the firmware."""
        import winreg

        try:
            path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
                model = str(winreg.QueryValueEx(key, "ProcessorNameString")[0])
                return clean_model(model), float(winreg.QueryValueEx(key, "~MHz")[0])
        except OSError:
            return UNKNOWN, None

    def _cpuid(leaf: int, subleaf: int) -> list[int]:
        kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel32.VirtualAlloc.restype = ctypes.c_void_p
        commit, executable, release = 0x3000, 0x40, 0x8000
        code = kernel32.VirtualAlloc(None, ctypes.c_size_t(len(_CPUID)), commit, executable)
        if not code:  # by a policy against code that is made at run time
            return [0, 0, 0, 0]
        ctypes.memmove(code, _CPUID, len(_CPUID))
        out = (ctypes.c_uint32 * 4)()
        ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(code)(leaf, subleaf, out)
        kernel32.VirtualFree(ctypes.c_void_p(code), ctypes.c_size_t(0), release)
        return list(out)

    def _ask_kernel(machine: str) -> tuple[Topology, int, set[str]]:
        """Read topology, affinity mask and Linux's names of the features from kernel32."""
        from ctypes import wintypes

        kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        known = _FEATURES.get(machine, {})
        features = {flag for number, flag in known.items() if kernel32.IsProcessorFeaturePresent(number)}
        if machine == "amd64":
            features |= vector_extensions(_cpuid, features)
        size = wintypes.DWORD(0)
        kernel32.GetLogicalProcessorInformationEx(_ALL, None, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        filled = kernel32.GetLogicalProcessorInformationEx(_ALL, buffer, ctypes.byref(size))
        kernel32.GetCurrentProcess.restype = wintypes.HANDLE
        kernel32.GetProcessAffinityMask.argtypes = [wintypes.HANDLE, ctypes.c_void_p, ctypes.c_void_p]
        process, system = ctypes.c_size_t(0), ctypes.c_size_t(0)
        kernel32.GetProcessAffinityMask(
            kernel32.GetCurrentProcess(), ctypes.byref(process), ctypes.byref(system)
        )
        return parse_topology(buffer.raw if filled else b""), process.value, features

    def read_windows() -> Cpu:
        """Read the processors of this Windows machine."""
        model, mhz = _registry()
        topology, affinity, features = _ask_kernel(architecture())
        logical = logical_count()
        physical, performance = usable_cores(topology, affinity)
        # The mask covers one group of at most 64 processors: only a narrower one restricts the process.
        narrow = 0 < affinity.bit_count() < min(logical, 64)
        return Cpu(
            model=model,
            architecture=architecture(),
            physical_cores=len(topology.cores) or logical,
            logical_cores=logical,
            usable_logical=affinity.bit_count() if narrow else logical,
            usable_physical=physical or logical,
            usable_performance=performance,
            instruction_sets=name_instruction_sets(features),
            caches=topology.caches,
            max_mhz=mhz,
        )
