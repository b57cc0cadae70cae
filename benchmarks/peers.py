"""Throughput and peak memory of training, compared with other programs from clones.

    python benchmarks/peers.py --llm-trainer ../llm-trainer [--rounds 2] [--steps 12] [--json]
    python benchmarks/peers.py --nanochat ../nanochat

In turns, each run a process of its own, on the same tokens (``builtin:python``, encoded beforehand with the
preset's vocabulary):

- ours: ``cpulm train --preset ... --steps ...`` with the precision it chooses, and once more with
  ``--precision fp32``;
- llm-trainer: its ``Trainer.train()`` by its configs/cpu_small_model.yaml, with its own model, collator, data
  loader with two workers, both of its losses, clipping, AdamW, schedule and last checkpoint. Left out, in its
  favour: its reading and tokenizing, and the package ``datasets`` where that is not installed. A setting of
  that file that its code does not have is ignored;
- nanochat: its ``GPT`` with its ``MuonAdamW`` in the shape of the preset (depth 4, heads of 64, full windows,
  as its runcpu.sh), stepped as its base_train.py does: eager; and compiled as it is by itself, model and
  optimizer. Left out, in its favour: its tokenizer and data loader, and its learning rates' schedules.

A step lasts from the end of one update to the end of the next, the median after the warm-up counts. FLOP are
counted by the formula of ``cpulm.model.counts`` for both sides. The peak of memory is that of all processes
of a program together: the resident size of the first one and what its helpers (data loaders, compilers, the
one that draws our report at the end) hold for themselves. The first one's own peak stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from cpulm.events import RunStarted, StepDone
from cpulm.execution.step_timing import fp32_peak
from cpulm.model.counts import flops_per_token
from cpulm.runlog.find_event import first_event
from cpulm.runlog.tail import Tail
from cpulm.settings.resolve_settings import resolve

ROOT = Path(__file__).resolve().parents[1]
OURS, OURS_FP32 = "cpulm", "cpulm, fp32"
PRESETS = {"llm-trainer": "llm-trainer-small", "nanochat": "nanochat-d4"}
_EVERY_SECONDS = 0.2


@dataclass(frozen=True)
class Finished:
    """A successful program: its stdout, its peak resident bytes, and those of its first process."""

    output: str
    peak_bytes: int
    own_peak_bytes: int


@dataclass
class Measured:
    """One program's seconds per step, a list per round, and the peaks of each round."""

    precision: str = "fp32"
    rounds: list[list[float]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    own_peaks: list[int] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        return statistics.median(itertools.chain(*self.rounds))

    @property
    def peak_bytes(self) -> int:
        return max(self.peaks)


def run_watched(command: list[str], environment: dict[str, str]) -> Finished:
    """Run to the end and monitor the memory of its processes.

    Raises:
        SystemExit: where it fails, with the end of what it wrote.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env={**os.environ, **environment})
        own, together = 0, 0
        while process.poll() is None:
            with contextlib.suppress(psutil.Error, OSError):
                first = psutil.Process(process.pid)
                own = max(own, _high_water(first))
                helpers = sum(_private(child) for child in first.children(recursive=True))
                together = max(together, first.memory_info().rss + helpers)
            time.sleep(_EVERY_SECONDS)
        output.seek(0), errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}\n{errors.read()[-3000:]}")
        return Finished(output.read(), max(own, together), own)


def _high_water(process: psutil.Process) -> int:
    """The process's peak resident bytes; the current ones if the system does not report a peak."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


def _private(process: psutil.Process) -> int:
    """Bytes held by this process only: a forked worker shares most pages with its parent."""
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().uss)
    return 0


def tokens_of(preset: str, folder: Path, source: str) -> Path:
    """The text encoded for the preset: a folder that both programs read."""
    vocab_size = resolve(preset=preset).data.vocab_size
    out = folder / "tokens"
    command = [sys.executable, "-m", "cpulm", "tokenize", source, "--vocab-size", str(vocab_size)]
    subprocess.run([*command, "--out", str(out), "--headless"], check=True, capture_output=True, cwd=ROOT)
    return out


def ours(
    preset: str, tokens: Path, steps: int, folder: Path, options: list[str]
) -> tuple[str, list[float], Finished]:
    """One run of ``cpulm train``: its precision, the ends of its updates, its peak."""
    out = folder / f"run-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "cpulm", "train", "--preset", preset, "--data", str(tokens)]
    command += ["--steps", str(steps), "--device", "cpu", "--headless", "--out", str(out), *options]
    done = run_watched(command, {"CPULM_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)})
    started = first_event(out / "metrics.jsonl", RunStarted)
    assert started is not None, done.output
    events = Tail(out / "metrics.jsonl").new_events()
    return started.precision, [event.time for event in events if isinstance(event, StepDone)], done


def theirs(
    which: str, clone: Path, tokens: Path, steps: int, folder: Path, how: str
) -> tuple[str, list[float], Finished]:
    """One run of the other program, likewise."""
    vocab_size = json.loads((tokens / "meta.json").read_text("utf-8"))["vocab_size"]
    command = [sys.executable, str(ROOT / "benchmarks" / "peer_steps.py"), which, str(clone.resolve())]
    command += [str(tokens / "train.bin"), str(vocab_size), str(steps)]
    if which == "llm-trainer":
        command.append(str(folder / "llm-trainer"))
    elif how == "eager":
        command.append(how)
    done = run_watched(command, {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")})
    return "fp32", json.loads(done.output.splitlines()[-1]), done


def in_turns(which: str, clone: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Measured]:
    """Every program's steps, round by round."""
    preset, steps = PRESETS[which], arguments.warmup + arguments.steps
    tokens = tokens_of(preset, folder, arguments.data)
    peer_names = ["nanochat, eager", "nanochat, compiled"] if which == "nanochat" else [which]
    found = {name: Measured() for name in (OURS, OURS_FP32, *peer_names)}
    for number in range(arguments.rounds):
        for name, measured in found.items():
            if name.startswith(OURS):
                options = ["--precision", "fp32"] if name == OURS_FP32 else []
                precision, ends, done = ours(preset, tokens, steps, folder, options)
            else:
                how = name.rpartition(", ")[2]
                precision, ends, done = theirs(which, clone, tokens, steps, folder, how)
            # llm-trainer takes one more step than requested in each remaining epoch.
            seconds = [later - sooner for sooner, later in itertools.pairwise(ends[:steps])]
            measured.precision = precision
            measured.rounds.append(seconds[max(0, arguments.warmup - 1) :])
            measured.peaks.append(done.peak_bytes)
            measured.own_peaks.append(done.own_peak_bytes)
            median = statistics.median(measured.rounds[-1])
            print(
                f"round {number + 1}: {name}: {median:.3f} s, {done.peak_bytes / 1e6:.0f} MB", file=sys.stderr
            )
    return found


def result_of(which: str, found: dict[str, Measured], gflops_peak: float) -> dict[str, Any]:
    """Figures of every program, and the ratio of cpulm's to each."""
    settings = resolve(preset=PRESETS[which])
    assert settings.data.vocab_size is not None
    flops = flops_per_token(settings.model, settings.data.vocab_size)
    programs = []
    for name, measured in found.items():
        rate = settings.tokens_per_step / measured.step_seconds
        programs.append(
            {
                "program": name,
                "precision": measured.precision,
                "steps_measured": sum(map(len, measured.rounds)),
                "step_seconds": round(measured.step_seconds, 4),
                "tokens_per_second": round(rate, 1),
                "gflops": round(rate * flops / 1e9, 1),
                "peak_bytes": measured.peak_bytes,
                "own_peak_bytes": max(measured.own_peaks),
                **{f"speed_over_{peer}": ratio(peer, measured, found) for peer in found if peer != name},
            }
        )
    return {
        "preset": PRESETS[which],
        "tokens_per_step": settings.tokens_per_step,
        "fp32_matmul_gflops": round(gflops_peak, 1),
        "programs": programs,
    }


def ratio(peer: str, measured: Measured, found: dict[str, Measured]) -> dict[str, float]:
    """The speed ratio over all steps, its minimum and maximum over rounds, and the memory ratio."""
    pairs = zip(measured.rounds, found[peer].rounds, strict=True)
    by_round = [statistics.median(other) / statistics.median(own) for own, other in pairs]
    return {
        "median": round(found[peer].step_seconds / measured.step_seconds, 2),
        "least": round(min(by_round), 2),
        "most": round(max(by_round), 2),
        "memory": round(measured.peak_bytes / found[peer].peak_bytes, 3),
    }


def show(result: dict[str, Any]) -> None:
    """A table of the programs, then cpulm's ratios to the others."""
    print(f"\n{result['preset']}: {result['tokens_per_step']} tokens a step, ", end="")
    print(f"an fp32 matrix product here: {result['fp32_matmul_gflops']:.0f} GFLOP/s")
    print(
        f"{'program':20} {'computes':>9} {'step':>9} {'tok/s':>8} {'GFLOP/s':>8} {'peak':>9} {'its own':>9}"
    )
    for program in result["programs"]:
        print(
            f"{program['program']:20} {program['precision']:>9} {program['step_seconds']:7.3f} s"
            f" {program['tokens_per_second']:8.0f} {program['gflops']:8.1f}"
            f" {program['peak_bytes'] / 1e6:6.0f} MB {program['own_peak_bytes'] / 1e6:6.0f} MB"
        )
    peers = [p["program"] for p in result["programs"] if not p["program"].startswith(OURS)]
    for program in result["programs"][:2]:
        for peer in peers:
            of = program[f"speed_over_{peer}"]
            print(
                f"{program['program']} ({program['precision']}) over {peer}: {of['median']:.2f} times as fast"
                f" (by round {of['least']:.2f} to {of['most']:.2f}), {100 * of['memory']:.0f} % of its memory"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm-trainer", type=Path, help="a clone of llm-trainer")
    parser.add_argument("--nanochat", type=Path, help="a clone of nanochat")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="measured in a round, after the warm-up")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those")
    parser.add_argument("--data", default="builtin:python", help="text, large enough for the vocabulary")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    clones = {"llm-trainer": arguments.llm_trainer, "nanochat": arguments.nanochat}
    if not any(clones.values()):
        parser.error("name a clone: --llm-trainer or --nanochat")
    for which, clone in clones.items():
        if clone is None:
            continue
        before = fp32_peak(torch.device("cpu"))
        with tempfile.TemporaryDirectory() as name:
            found = in_turns(which, clone, arguments, Path(name))
        result = result_of(which, found, max(before, fp32_peak(torch.device("cpu"))) / 1e9)
        if arguments.json:
            print(json.dumps(result), flush=True)
        else:
            show(result)


if __name__ == "__main__":
    main()
