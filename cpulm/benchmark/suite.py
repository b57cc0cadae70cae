"""Benchmarks one preset in this process, or every preset in a process of its own."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from cpulm.benchmark.step_benchmark import DataSizes, Peak, Result, benchmark_step, measure_peak
from cpulm.command import cpulm_command, last_error, last_line, log_environment
from cpulm.data.prepare import prepare_fitting
from cpulm.errors import ResourceError, StoppedError
from cpulm.estimate import requirements
from cpulm.estimate.memory import expected_arithmetic
from cpulm.estimate.preset_sizes import CHARACTERS
from cpulm.events import Listener, Progress
from cpulm.execution.compilation import decide_compile
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.exit_codes import exit_in_words
from cpulm.interrupts import StopRequest
from cpulm.preset_files import preset_names
from cpulm.settings import Settings
from cpulm.system.machine import read_machine


def benchmark_preset(
    settings: Settings, *, with_data: bool, seconds: float, show: Listener, block_is_wish: bool = False
) -> tuple[Result, Peak]:
    """Measure one preset, and the machine's peak.

    Args:
        with_data: whether to prepare the data, for its real vocabulary and length.
        seconds: the approximate time of the updates, of eager and of compiled ones.
        block_is_wish: as in :func:`cpulm.data.prepare.prepare_fitting`.

    Raises:
        CpulmError: if a run with the settings could not begin on this machine.
    """
    machine = read_machine()
    choose_runtime(settings.runtime, machine)  # refuses what is not available, before the data is prepared
    with StopRequest() as stop:
        sizes = DataSizes(settings.data.vocab_size or CHARACTERS)
        if with_data:
            tokens, settings = prepare_fitting(
                settings, emit=show, should_stop=stop, block_is_wish=block_is_wish
            )
            sizes = DataSizes(tokens.vocab_size, len(tokens.train), len(tokens.val))
        expected = expected_arithmetic(settings, machine)
        requirements.check_memory(settings, sizes.vocab_size, expected, requirements.memory_for_run(machine))
        runtime = choose_runtime(settings.runtime, machine, settings.model)

        def decide(steps: int | None) -> Runtime:
            planned = requirements.nominal_seconds(settings, sizes.vocab_size, steps, runtime.device.type)
            return decide_compile(runtime, settings.runtime.compile, machine, planned)

        result = benchmark_step(settings, sizes, runtime, decide, seconds=seconds, emit=show, stop=stop)
        peak = measure_peak(runtime.device, show)
    return result, peak


def benchmark_all(arguments: list[str], *, show: Listener) -> list[dict[str, Any]]:
    """Measure every preset, each in its own process, so that its peak memory is its own.

    Args:
        arguments: additional arguments of ``cpulm benchmark``.

    Returns:
        The ``--json`` object of each preset; presets that do not fit into this machine's memory are left
        out.

    Raises:
        StoppedError: on Ctrl-C.
    """
    names = preset_names()
    records: list[dict[str, Any]] = []
    with StopRequest() as stop:
        for done, name in enumerate(names):
            show(Progress(stage="measuring", done=done, total=len(names), unit="presets"))
            command = cpulm_command("benchmark", f"--preset={name}", "--quick", "--json", *arguments)
            ran = subprocess.run(
                command, capture_output=True, encoding="utf-8", env=log_environment(), check=False
            )
            if stop():
                raise StoppedError("while measuring", "run the command again")
            if ran.returncode == ResourceError.exit_code:
                continue
            if ran.returncode:
                why = last_error(ran.stderr) or last_line(ran.stderr) or exit_in_words(ran.returncode)
                raise ResourceError(
                    f"measuring {name} failed: {why}", f"try `cpulm benchmark --preset {name} --quick`"
                )
            records.append(json.loads(ran.stdout))
            show(
                Progress(
                    stage=f"measuring {name}", done=done + 1, total=len(names), unit="presets", finished=True
                )
            )
        show(Progress(stage="measuring", done=len(names), total=len(names), unit="presets", finished=True))
    return records
