"""Chooses the runtime of a resumed run, the original one if this machine allows, and reports differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.events import Listener, Notice
from cpulm.execution.compilation import decide_compile
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.settings import changed
from cpulm.system.machine import Machine
from cpulm.system.precisions import has_fast_int8

KEPT = "kept from the start of the run"

NAMES = {
    "device": "device",
    "device_name": "processor",
    "threads": "threads",
    "processes": "processes",
    "precision": "precision",
    "compiled": "compiled by torch",
    "kernels": "compiled kernels",
    "cpulm": "cpulm",
    "torch": "torch",
    "cpu_capability": "instruction set that torch uses",
    "instruction_sets": "instruction sets",
    "kernels_compiler": "how the kernels were compiled",
    "kernels_key": "code of the kernels",
    "math_variables": "environment",
}
"""The recorded facts that the bits of a run depend on, and their names in messages."""


def resumed_runtime(checkpoint: Checkpoint, machine: Machine, processes: int = 1) -> Runtime:
    """Return the runtime that the checkpoint was made with, as far as this machine supports it.

    Args:
        processes: that train the run now. With another number than before, the threads are chosen again.
    """
    facts = checkpoint.runtime
    threads = facts["threads"] if 1 <= facts["threads"] <= machine.usable_logical else None
    if facts.get("processes", 1) != processes:
        threads = checkpoint.settings.runtime.threads
    kernels = "auto" if facts.get("kernels") else "off"
    precision, reason = facts["precision"], facts.get("precision_reason", "")
    lost = precision == "int8" and not has_fast_int8(machine.instruction_sets)
    if lost:
        precision, reason = "fp32", "the run began in int8, which is slow on this CPU"
    requested = changed(checkpoint.settings.runtime, threads=threads, precision=precision, kernels=kernels)
    runtime = replace(choose_runtime(requested, machine, requested=KEPT), processes=processes)
    runtime = decide_compile(runtime, "on" if facts["compiled"] else "off", machine, None, KEPT)
    if reason:
        note = reason if lost else f"{precision} was chosen when the run began: {reason}"
        runtime = runtime.with_note(note, precision_reason=reason)
    by_openmp = machine.openmp.num_threads
    if by_openmp is not None and threads is not None and by_openmp != threads:
        runtime = runtime.with_note(
            f"{machine.openmp.name} is {by_openmp}: not used, a resumed run keeps its threads"
        )
    return runtime


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one text for each fact that differs, such as ``torch 2.12.0 -> 2.13.0``.

    Facts that were not recorded are not compared. Neither is the number of threads if both runs use the
    kernels, whose results do not depend on it.
    """
    differing = []
    in_kernels = all(facts.get("kernels") and facts.get("precision") != "bf16" for facts in (before, now))
    for key, name in NAMES.items():
        if key == "threads" and in_kernels:
            continue
        was, is_now = before.get(key), now.get(key)
        if was is not None and was != is_now:
            differing.append(f"{name} {_shown(was)} -> {_shown(is_now)}")
    return differing


def report_differences(checkpoint: Checkpoint, runtime: Runtime, emit: Listener) -> None:
    """Warn if the weights will not be bit-identical to those of a run that was never stopped."""
    differing = differences(checkpoint.runtime, runtime.facts())
    if differing:
        message = (
            "the weights will not be bit-identical to those of a run that was never stopped, because this "
            f"differs since the run was saved: {'; '.join(differing)}"
        )
        emit(Notice(level="warning", message=message))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "none"
