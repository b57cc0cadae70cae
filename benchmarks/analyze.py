"""Time and memory of ``cpulm analyze`` on the log of a very long run.

    python benchmarks/analyze.py --lines 1000000

Makes a run's folder with a ``metrics.jsonl`` of that many lines: mostly steps, with what a night has besides,
and some trouble. Then it runs the command as a user would and prints the seconds and the most resident memory
of each way to look at it; the best of several tries, for other programs only make it slower.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cpulm.events import (
    CheckpointSaved,
    Event,
    LayerStats,
    MachineSampled,
    RolledBack,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
    to_json,
)

_START = 1_700_000_000.0
_STEP_SECONDS = 0.03
_MACHINE_EVERY, _STATS_EVERY, _VALIDATION_EVERY, _ROLLBACK_EVERY = 10, 50, 1000, 100_000
_PARTS = tuple(f"blocks.{block}.{part}" for block in range(6) for part in ("qkv", "out", "up", "down"))


def started(steps: int) -> RunStarted:
    """The first event of the log."""
    return RunStarted(
        time=_START,
        run="runs/night",
        name="night",
        preset="4x192",
        version="0.1.0",
        step=0,
        steps=steps,
        max_time_seconds=None,
        device="cpu",
        device_name="Xeon",
        precision="fp32",
        compiled=False,
        threads=2,
        params_total=2_164_928,
        params_non_embedding=1_771_712,
        tokens_per_step=2048,
        flops_per_token=1.36e7,
        train_tokens=3_748_742,
        val_tokens=186_780,
        vocab_size=2048,
        block_size=128,
    )


def step_done(step: int, loss: float, noise: float, steps: int) -> StepDone:
    """One normal step of a run."""
    return StepDone(
        time=_START + step * _STEP_SECONDS,
        step=step,
        loss=loss,
        lr=1e-2 * (1 - step / (steps + 1)),
        grad_norm=1 + abs(noise),
        tokens=2048 * step,
        epoch=step * 2048 / 3_748_742,
        elapsed_seconds=step * _STEP_SECONDS,
        step_seconds=_STEP_SECONDS * (1 + 0.1 * abs(noise)),
        data_seconds=1e-4,
        progress=step / steps,
    )


def beside(step: int, loss: float) -> list[Event]:
    """The events that sometimes follow a step."""
    now, events = _START + step * _STEP_SECONDS, list[Event]()
    if step % _MACHINE_EVERY == 0:
        events.append(
            MachineSampled(
                time=now,
                cpu_percent=97.1,
                process_cpu_percent=91.2,
                cpu_mhz=2500.0,
                cpu_temperature=None,
                process_bytes=599_363_584,
                memory_used_bytes=1_387_528_192,
                memory_total_bytes=25_276_514_304,
            )
        )
    if step % _STATS_EVERY == 0:
        values = tuple(1.0 + 0.01 * number for number in range(len(_PARTS)))
        events.append(
            LayerStats(
                time=now,
                step=step,
                names=_PARTS,
                weight_norms=values,
                grad_norms=values,
                update_ratios=values,
            )
        )
    if step % _VALIDATION_EVERY == 0:
        events += validation(step, now, loss)
    if step % _ROLLBACK_EVERY == 0:
        events.append(
            RolledBack(
                time=now,
                step=step,
                to_step=step - 50,
                reason="the loss is nan",
                skipped_batches=(step,),
                count=1,
                limit=3,
            )
        )
    return events


def validation(step: int, now: float, loss: float) -> list[Event]:
    """A validation, its checkpoint and its sample."""
    return [
        Validated(
            time=now,
            step=step,
            loss=loss,
            perplexity=float(np.exp(loss)),
            bits_per_byte=loss / 2.1,
            tokens=49_152,
            seconds=0.5,
            whole=False,
            best=True,
        ),
        CheckpointSaved(time=now, step=step, path="latest.pt", role="latest", bytes=1, seconds=0.1),
        SampleMade(time=now, step=step, prompt="", text="def read(path):\n    return path\n" * 8),
    ]


def write_run(folder: Path, lines: int) -> None:
    """A run's folder with a log of ``lines`` lines."""
    steps, noise = lines, np.random.default_rng(0).standard_normal(lines + 1)
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text("preset: tiny\n", encoding="utf-8")
    written, step = 1, 0
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.write(to_json(started(steps)) + "\n")
        while written < lines:
            step += 1
            loss = 2 + 6 * step**-0.25 + 0.1 * float(noise[step])
            events = [step_done(step, loss, float(noise[step]), steps), *beside(step, loss)]
            file.writelines(to_json(event) + "\n" for event in events[: lines - written])
            written += len(events)


def measure(arguments: list[str]) -> tuple[float, float, int]:
    """Seconds, peak resident MiB and bytes on stdout of one ``cpulm analyze``."""
    with tempfile.TemporaryFile() as out:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "cpulm", "analyze", *arguments], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise SystemExit(f"cpulm analyze ended with status {status}")
        return seconds, usage.ru_maxrss / 1024, out.tell()


def main() -> None:
    """Write the log, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--run", type=Path, help="keep the log here, and reuse an existing one")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = chosen.run or Path(scratch) / "night"
        if not run.exists():
            write_run(run, chosen.lines)
        size = (run / "metrics.jsonl").stat().st_size
        print(f"{chosen.lines:,} lines, {size / 2**20:.0f} MiB")
        page = Path(scratch) / "report.html"
        for name, more in (("terminal", []), ("--json", ["--json"]), ("--html", ["--html", str(page)])):
            results = [measure([str(run), *more]) for _ in range(chosen.tries)]
            seconds, memory, written = min(results)
            written = page.stat().st_size if name == "--html" else written
            print(f"{name:<10} {seconds:6.2f} s  {memory:6.0f} MiB  {written / 2**10:8.0f} KiB written")


if __name__ == "__main__":
    main()
