"""Container limits from synthetic /proc and /sys/fs/cgroup trees of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpulm.system.cgroup import Limits, read_limits

GIB = 1024**3
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
"""
V1_NO_LIMIT = "9223372036854771712\n"


def build(root: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    proc = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo}
    for name, text in {**proc, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cpu_max", "cpus"),
    [
        ("200000 100000\n", 2.0),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("max 100000\n", None),
        ("max\n", None),
    ],
)
def test_v2_quota(tmp_path: Path, cpu_max: str, cpus: float | None) -> None:
    root = build(tmp_path, "0::/\n", V2_MOUNT, {"cpu.max": cpu_max, "memory.max": "max\n"})
    assert read_limits(root) == Limits(cpus, None, None)


def test_v2_memory_leaves_out_the_cache_that_can_be_dropped(tmp_path: Path) -> None:
    files = {
        "memory.max": f"{4 * GIB}\n",
        "memory.high": "max\n",
        "memory.current": f"{3 * GIB}\n",
        "memory.stat": f"anon {GIB}\nfile {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB}\n",
    }
    root = build(tmp_path, "0::/\n", V2_MOUNT, files)
    assert read_limits(root) == Limits(None, 4 * GIB, 2 * GIB)


def test_v2_nested_groups_take_the_tightest(tmp_path: Path) -> None:
    files = {
        "user.slice/cpu.max": "300000 100000\n",
        "user.slice/memory.max": f"{2 * GIB}\n",
        "user.slice/memory.current": f"{GIB}\n",
        "user.slice/app.scope/cpu.max": "800000 200000\n",
        "user.slice/app.scope/memory.max": "max\n",
        "user.slice/app.scope/memory.high": f"{3 * GIB}\n",
    }
    root = build(tmp_path, "0::/user.slice/app.scope\n", V2_MOUNT, files)
    assert read_limits(root) == Limits(3.0, 2 * GIB, GIB)


def test_v2_high_counts_as_a_limit(tmp_path: Path) -> None:
    files = {"memory.max": f"{8 * GIB}\n", "memory.high": f"{6 * GIB}\n"}
    assert read_limits(build(tmp_path, "0::/\n", V2_MOUNT, files)).memory_bytes == 6 * GIB


def test_v1_limits(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/job/cpu.cfs_quota_us": "400000\n",
        "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/job/memory.limit_in_bytes": f"{GIB}\n",
        "memory/job/memory.usage_in_bytes": f"{GIB // 2}\n",
        "memory/job/memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {GIB // 4}\n",
        "memory/memory.limit_in_bytes": V1_NO_LIMIT,
    }
    root = build(tmp_path, "4:memory:/job\n3:cpu,cpuacct:/job\n", V1_MOUNTS.format(root="/"), files)
    assert read_limits(root) == Limits(4.0, GIB, GIB // 4)


def test_v1_without_limits(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "memory/memory.limit_in_bytes": V1_NO_LIMIT}
    root = build(tmp_path, "4:memory:/\n3:cpu,cpuacct:/\n", V1_MOUNTS.format(root="/"), files)
    assert read_limits(root) == Limits(None, None, None)


def test_v1_container_sees_its_own_group_as_the_mounts_root(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": f"{GIB}\n",
    }
    groups = "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n"
    root = build(tmp_path, groups, V1_MOUNTS.format(root="/docker/1f"), files)
    assert read_limits(root) == Limits(2.5, GIB, None)


def test_group_outside_of_the_mount_is_read_at_the_mount(tmp_path: Path) -> None:
    root = build(tmp_path, "0::/../other\n", V2_MOUNT, {"cpu.max": "100000 100000\n"})
    assert read_limits(root).cpus == 1.0


def test_mixed_system_takes_the_version_that_limits(tmp_path: Path) -> None:
    mounts = V1_MOUNTS.format(root="/") + V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    files = {
        "unified/app/cpu.max": "100000 100000\n",
        "memory/memory.limit_in_bytes": f"{GIB}\n",
    }
    root = build(tmp_path, "4:memory:/\n0::/app\n", mounts, files)
    assert read_limits(root) == Limits(1.0, GIB, None)


def test_no_cgroups(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == Limits(None, None, None)
