"""What a run needs: its duration from its settings alone, and its memory against a container's limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cpulm.errors import ResourceError
from cpulm.estimate.memory import expected_arithmetic, memory_bytes
from cpulm.estimate.requirements import check_memory, memory_for_run, nominal_seconds
from cpulm.model.counts import flops_per_token
from cpulm.settings.resolve_settings import resolve
from cpulm.system.cgroup import read_limits
from cpulm.system.machine import read_machine, within_limits
from cpulm.system.monitor import resident_bytes


def test_a_horizon_in_updates_counts_operations() -> None:
    settings = resolve(preset="tiny")
    flops = flops_per_token(settings.model, 2048) * settings.tokens_per_step
    assert nominal_seconds(settings, 2048, 1000, "cpu") == pytest.approx(1000 * flops / 1e11)
    assert nominal_seconds(settings, 2048, 1000, "cuda") == pytest.approx(1000 * flops / 1e13)
    assert nominal_seconds(settings, 2048, None, "cpu") is None


def test_a_horizon_in_time_is_taken_as_it_is() -> None:
    settings = resolve(preset="tiny", assignments=["train.max_time=90m"])
    assert nominal_seconds(settings, 2048, None, "cpu") == 5400.0


def test_what_this_process_holds_already_is_not_counted_twice(tmp_path: Path) -> None:
    """The need is that of the whole process; a container's limit leaves what this process does not hold."""
    # A run that needs more than this process holds, whatever other tests left in it.
    settings, machine = resolve(preset="tiny", assignments=["train.micro_batch_size=512"]), read_machine()
    arithmetic = expected_arithmetic(settings, machine)
    needed, margin = memory_bytes(settings, 2048, arithmetic), 32 << 20
    assert needed > 2 * resident_bytes()
    for spare, fits in ((margin, True), (-margin, False)):
        (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self/cgroup").write_text("0::/\n")
        (tmp_path / "proc/self/mountinfo").write_text("30 23 0:26 / /group rw - cgroup2 cgroup2 rw\n")
        (tmp_path / "group").mkdir(exist_ok=True)
        (tmp_path / "group/memory.max").write_text(f"{needed + spare}\n")
        (tmp_path / "group/memory.current").write_text(f"{resident_bytes()}\n")
        total, available = within_limits(1 << 40, 1 << 40, read_limits(tmp_path))
        assert available < needed
        limited = replace(machine, memory_total_bytes=total, memory_available_bytes=available)
        if fits:
            check_memory(settings, 2048, arithmetic, memory_for_run(limited))
        else:
            with pytest.raises(ResourceError, match="of memory, and"):
                check_memory(settings, 2048, arithmetic, memory_for_run(limited))
