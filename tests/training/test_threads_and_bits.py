"""The weights do not depend on the number of threads, nor on how busy the machine is."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from busy_programs import busy_programs
from small_runs import same, settings_for, train
from torch import Tensor

from cpulm.execution import adaptive_threads as adaptive
from cpulm.execution.adaptive_threads import same_bits
from cpulm.execution.runtime import Runtime
from cpulm.execution.threads_in_use import Threads, UseThreads
from cpulm.execution.update import StepTimer, training_update
from cpulm.native.kernels import Kernels
from cpulm.native.thread_pool import ThreadPool
from cpulm.settings import ModelSettings, Settings, TrainSettings
from cpulm.system.cpu_use import OthersUse
from cpulm.training.build import build_random_parts

GPT2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "qk_norm": False, "bias": True}
CASES = {
    "qwen3, muon": Settings(
        model=ModelSettings(n_layer=2, n_head=4, n_embd=128, block_size=64, dropout=0.1),
        train=TrainSettings(micro_batch_size=12, grad_accum_steps=2),
    ),
    "qwen3 with a teacher, muon": Settings(
        model=ModelSettings(n_layer=2, n_head=4, n_embd=128, block_size=64),
        train=TrainSettings(micro_batch_size=12, teacher="any", teacher_temperature=2.0),
    ),
    "gpt2, adamw": Settings(
        model=ModelSettings(n_layer=2, n_head=4, n_embd=128, block_size=64, **GPT2),
        train=TrainSettings(micro_batch_size=12, optimizer="adamw"),
    ),
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def runtime_of(library: Path, precision: str) -> Runtime:
    kernels = Kernels(library)
    if precision == "int8" and kernels.int8 is None:
        pytest.skip("no fast int8 products on this CPU")
    device = torch.device("cpu")
    return Runtime(device=device, device_name="cpu", threads=2, precision=precision, kernels=kernels)


def weights_after(settings: Settings, runtime: Runtime, threads: Sequence[Threads]) -> list[Tensor]:
    """The weights after five updates, each with the next of the choices of threads in turn."""
    assert runtime.kernels is not None
    use = UseThreads(runtime.kernels.pool)
    parts = build_random_parts(settings, 96, runtime)
    accumulated = settings.train.grad_accum_steps
    for step, chosen in zip(range(5), itertools.cycle(threads), strict=False):
        use(chosen)
        batches = range(step * accumulated, (step + 1) * accumulated)
        training_update(parts, batches, runtime, 1.0, StepTimer())
    use(Threads(1))
    return list(parts.model.state_dict().values())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_threads_gives_the_same_weights(
    kernels_library: Path, case: str, precision: str
) -> None:
    runtime = runtime_of(kernels_library, precision)
    wanted = weights_after(CASES[case], runtime, [Threads(1)])
    several = [Threads(2), Threads(1, 2), Threads(3), Threads(2, 3)]
    tried = [[Threads(2)], [Threads(3)], [Threads(1, 3)], several]
    pooled = Threads(1, 3, products=True)  # whether BLAS computes a row alike in any part depends on the CPU
    parts = build_random_parts(CASES[case], 96, runtime)
    assert runtime.kernels is not None
    if same_bits(parts, runtime, [Threads(1), pooled], UseThreads(runtime.kernels.pool)):
        tried.append([pooled])
    for threads in tried:
        found = weights_after(CASES[case], runtime, threads)
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True)), threads


def test_the_check_before_the_first_change_sees_what_depends_on_the_threads(kernels_library: Path) -> None:
    """Torch's own LayerNorm adds its weight's gradient up per thread."""
    runtime = runtime_of(kernels_library, "fp32")
    parts = build_random_parts(CASES["gpt2, adamw"], 96, runtime)
    state = torch.get_rng_state()
    use = UseThreads(runtime.kernels.pool if runtime.kernels else None)
    choices = [Threads(1), Threads(2), Threads(3), Threads(1, 3)]
    assert same_bits(parts, runtime, choices, use)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in parts.model.parameters())
    without = replace(runtime, kernels=None)
    parts = build_random_parts(CASES["gpt2, adamw"], 96, without)
    assert not same_bits(parts, without, choices[:3], UseThreads(None))


@pytest.mark.usefixtures("kernels_library")
def test_a_run_beside_busy_programs_gives_the_weights_of_a_calm_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200, encoding="utf-8")
    settings = settings_for(text, "train.steps=24", "runtime.threads=2", "model.n_embd=32")
    train(settings, tmp_path / "calm")
    numbers: list[int] = []
    pools: list[int] = []
    use, use_pool = torch.set_num_threads, ThreadPool.use

    def note(number: int) -> None:
        numbers.append(number)
        use(number)

    def note_pool(pool: ThreadPool, threads: int, processors: Sequence[int] = ()) -> None:
        pools.append(threads)
        use_pool(pool, threads, processors)

    monkeypatch.setattr(ThreadPool, "use", note_pool)
    monkeypatch.setattr(adaptive, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(adaptive, "FIRST_HOLD_SECONDS", 0.0)
    monkeypatch.setattr(OthersUse, "read", lambda self: 2.0)
    monkeypatch.setattr(torch, "set_num_threads", note)
    with busy_programs(1):
        train(settings, tmp_path / "busy")
    assert {1, 2} <= set(numbers)
    if sys.platform == "linux":
        assert max(pools) >= 2
        assert pools[-1] == 0
    assert same(tmp_path / "calm" / "latest.pt", tmp_path / "busy" / "latest.pt")
