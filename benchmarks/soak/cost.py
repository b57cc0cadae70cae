"""The cost of a checkpoint: the median of five saves of a preset's whole state, flushed to the disk."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cpulm.data.prepare import prepare
from cpulm.execution.runtime import choose_runtime
from cpulm.interrupts import StopRequest
from cpulm.run_dir import RunDir
from cpulm.settings.record_settings import CheckpointSettings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.training.build import build_parts, build_trainer

PRESETS = ("4x192", "6x256", "6x384")
SAVES = 5


def cost(presets: tuple[str, ...] = PRESETS, place: Path | None = None) -> dict[str, Any]:
    """Seconds of a save and its share of a run at the default interval, for each preset.

    Args:
        place: where to save; None for the folder of temporary files.
    """
    return {"presets": [_row(preset, place) for preset in presets]}


def _row(preset: str, place: Path | None) -> dict[str, Any]:
    settings = resolve(preset=preset, assignments=["runtime.compile=off", "train.micro_batch_size=1"])
    runtime = choose_runtime(settings.runtime, read_machine())
    tokens = prepare(settings.data, emit=lambda _: None, should_stop=lambda: False)
    with tempfile.TemporaryDirectory(dir=place) as name:
        run = RunDir(Path(name))
        parts = build_parts(settings, tokens, runtime)
        trainer = build_trainer(
            settings,
            tokens,
            parts,
            runtime,
            run,
            emit=lambda _: None,
            stop=StopRequest(),
            began=time.monotonic(),
            step_seconds=0.0,
        )
        trainer.update()  # from here on the optimizers have their state
        seconds = []
        for number in range(1, SAVES + 1):
            began = time.perf_counter()
            trainer.checkpointer.save(number, 0.0)
            seconds.append(time.perf_counter() - began)
        every = CheckpointSettings().every
        return {
            "preset": preset,
            "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
            "bytes": run.latest.stat().st_size,
            "seconds": round(statistics.median(seconds), 3),
            "seconds_range": [round(edge, 3) for edge in (min(seconds), max(seconds))],
            "percent_of_the_run": round(100 * statistics.median(seconds) / every, 4),
        }


def told(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    lines = [f"{'preset':<8} {'parameters':>11} {'file':>10} {'seconds':>8} {'range':>15} {'of a run':>9}"]
    for row in result["presets"]:
        low, high = row["seconds_range"]
        lines.append(
            f"{row['preset']:<8} {row['parameters']:>11,} {row['bytes'] / 2**20:>6.1f} MiB "
            f"{row['seconds']:>8.3f} {low:>7.3f}-{high:<7.3f} {row['percent_of_the_run']:>7.3f} %"
        )
    return lines
