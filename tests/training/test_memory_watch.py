"""Memory fills up: one warning with a suitable remedy, and a checkpoint in time."""

from __future__ import annotations

from cpulm.events import Event, MachineSampled, Notice
from cpulm.training.memory_watch import MemoryWatch

GIB = 2**30


def watched(samples: list[tuple[float, float]], smaller: str = "--set a=1") -> tuple[list[str], int]:
    """Return the warnings and requested checkpoints for (machine used, this process) in GiB of 10."""
    heard: list[Event] = []
    saves: list[bool] = []
    watch = MemoryWatch(heard.append, lambda: saves.append(True), smaller)
    for used, own in samples:
        watch(
            MachineSampled(
                cpu_percent=1.0,
                process_cpu_percent=1.0,
                cpu_mhz=None,
                cpu_temperature=None,
                process_bytes=int(own * GIB),
                memory_used_bytes=int(used * GIB),
                memory_total_bytes=10 * GIB,
            )
        )
    assert all(isinstance(event, Notice) and event.level == "warning" for event in heard)
    return [event.message for event in heard if isinstance(event, Notice)], len(saves)


def test_below_the_limit_nothing_is_said() -> None:
    assert watched([(1, 1), (8.4, 8), (8.4, 1)]) == ([], 0)


def test_a_rise_gives_one_warning_with_a_remedy() -> None:
    messages, saves = watched([(8.6, 8), (9.0, 8), (8.6, 8)])
    assert saves == 0
    assert len(messages) == 1
    assert "86% full: 8.6 GiB of 10.0 GiB" in messages[0]
    assert messages[0].endswith("close other programs, or start a smaller run: --set a=1")


def test_other_programs_are_named_where_they_take_the_most() -> None:
    messages, _ = watched([(8.6, 1)])
    assert messages[0].endswith("close other programs")


def test_a_checkpoint_is_saved_before_the_kernel_kills_and_again_after_the_next_rise() -> None:
    assert watched([(9.4, 8), (9.6, 8), (9.4, 8)])[1] == 1
    assert watched([(9.4, 8), (5, 4), (9.4, 8)])[1] == 2


def test_a_system_without_an_answer_is_left_alone() -> None:
    heard: list[Event] = []
    nothing = MachineSampled(
        cpu_percent=0.0,
        process_cpu_percent=0.0,
        cpu_mhz=None,
        cpu_temperature=None,
        process_bytes=0,
        memory_used_bytes=0,
        memory_total_bytes=0,
    )
    MemoryWatch(heard.append, lambda: None, "")(nothing)
    assert heard == []
