"""The limits of a container or systemd unit: processor time and memory, by cgroup version 1 and 2.

Sources: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst; proc(5) for mountinfo.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cpulm.system.small_file import read_small_file

_NO_LIMIT = 1 << 60
"""Version 1 writes "no limit" as the largest page-aligned 64-bit number."""


@dataclass(frozen=True)
class Limits:
    """The limits of a process. None means no limit.

    ``cpus`` limits processor time, in logical processors, ``memory_bytes`` limits memory.
    ``memory_used_bytes`` counts towards it; the file cache that can be dropped is not included.
    """

    cpus: float | None = None
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None


@dataclass(frozen=True)
class _Hierarchy:
    """A mounted hierarchy, the process's group in it, and whether it is version 2."""

    mount: Path
    group: Path
    unified: bool

    def levels(self) -> list[Path]:
        """Return the process's group and its ancestors: each limits all groups below it."""
        found = [self.group]
        while found[-1] != self.mount and self.mount in found[-1].parents:
            found.append(found[-1].parent)
        return found


def read_limits(root: Path = Path("/"), process: str = "self") -> Limits:
    """Return the tightest limits on the process, over its groups and all their ancestors.

    Args:
        root: the folder that holds ``proc`` and the mounts that it names.
        process: the process's folder in ``proc``.
    """
    cpus: list[float] = []
    memory: list[tuple[int, int | None]] = []
    for controller in ("cpu", "memory"):
        for hierarchy in _hierarchies(root, process, controller):
            for level in hierarchy.levels():
                if controller == "cpu":
                    cpus += _quota(level, hierarchy.unified)
                else:
                    memory += _memory(level, hierarchy.unified)
    tightest = min(memory, key=lambda pair: pair[0], default=(None, None))
    return Limits(min(cpus, default=None), *tightest)


def _hierarchies(root: Path, process: str, controller: str) -> list[_Hierarchy]:
    """Return the hierarchies that may limit ``controller``: that of version 2, and its own of version 1."""
    groups = _groups(read_small_file(root / "proc" / process / "cgroup"))
    found = []
    for line in read_small_file(root / "proc" / process / "mountinfo").splitlines():
        # id parent major:minor root mount-point options [optional...] - type source super-options
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind or kind[0] not in ("cgroup", "cgroup2"):
            continue
        unified = kind[0] == "cgroup2"
        if not unified and controller not in kind[-1].split(","):
            continue
        path = groups.get("" if unified else controller)
        if path is None:
            continue
        mount = root / _unescape(fields[4]).lstrip("/")
        found.append(_Hierarchy(mount, mount / _below(path, _unescape(fields[3])), unified))
    return found


def _groups(text: str) -> dict[str, str]:
    """Return the path of the process's group by controller; version 2 has the key ``""``."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _below(path: str, mounted: str) -> str:
    """Return ``path`` relative to the mounted group.

    ``.`` if it lies outside, as in a container that sees only its own group.
    """
    group = PurePosixPath(path)
    if ".." in group.parts or not group.is_relative_to(mounted):
        return "."
    return str(group.relative_to(mounted))


def _quota(level: Path, unified: bool) -> list[float]:
    """Return the group's processor time per period, in processors; empty if it is not limited."""
    if unified:
        quota, _, period = read_small_file(level / "cpu.max").strip().partition(" ")
    else:
        quota = read_small_file(level / "cpu.cfs_quota_us").strip()
        period = read_small_file(level / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not (period or "100000").isdigit():
        return []
    return [int(quota) / int(period or 100_000)]


def _memory(level: Path, unified: bool) -> list[tuple[int, int | None]]:
    """Return the group's lowest memory limit and its memory in use; empty if it has no limit.

    ``memory.high`` slows a process down so much that it counts as a limit.
    """
    limits = ("memory.max", "memory.high") if unified else ("memory.limit_in_bytes",)
    found = [_number(level / name) for name in limits]
    tightest = min((limit for limit in found if limit is not None and limit < _NO_LIMIT), default=None)
    if tightest is None:
        return []
    used = _number(level / ("memory.current" if unified else "memory.usage_in_bytes"))
    if used is None:
        return [(tightest, None)]
    droppable = "inactive_file " if unified else "total_inactive_file "
    for line in read_small_file(level / "memory.stat").splitlines():
        if line.startswith(droppable):
            used = max(0, used - int(line.split()[1]))
    return [(tightest, used)]


def _number(path: Path) -> int | None:
    text = read_small_file(path).strip()
    return int(text) if text.isdigit() else None


def _unescape(text: str) -> str:
    """Decode the whitespace and backslashes that mountinfo writes as three octal digits."""
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
