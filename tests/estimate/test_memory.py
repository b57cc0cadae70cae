"""The estimate of memory against the memory that torch uses while small models train."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cpus import CPUS

from cpulm.errors import ResourceError
from cpulm.estimate import memory
from cpulm.estimate.memory import (
    Arithmetic,
    arithmetic_of,
    expected_arithmetic,
    memory_bytes,
    training_bytes,
    vector_lanes,
)
from cpulm.estimate.requirements import check_memory, disk_bytes
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.update import StepTimer, training_update
from cpulm.model.counts import count, count_adapters
from cpulm.native.kernels import Kernels
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine
from cpulm.system.precisions import has_fast_int8
from cpulm.training.build import build_random_parts

VOCAB = 192
SHAPE = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 128}
GPT2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "qk_norm": "false", "bias": "true"}
COMPUTED_IN = ("int8", "fp32", "torch")


def settings_of(
    batch: int = 8,
    accumulate: int = 1,
    optimizer: str = "muon",
    masked: bool = False,
    taught: bool = False,
    rank: int = 0,
    **model: Any,
) -> Settings:
    shape = [f"model.{name}={value}" for name, value in {**SHAPE, **model}.items()]
    return resolve(
        assignments=[
            *shape,
            f"train.micro_batch_size={batch}",
            f"train.grad_accum_steps={accumulate}",
            f"train.optimizer={optimizer}",
            f"train.document_mask={masked}".lower(),
            f"train.teacher={'any' if taught else 'null'}",
            f"train.init_from={'any' if rank else 'null'}",
            f"lora.rank={rank}",
        ]
    )


def test_an_average_of_the_weights_is_one_more_copy_of_them() -> None:
    plain, averaged = (
        resolve(preset="tiny", assignments=[f"train.average_fraction={fraction}"])
        for fraction in ("null", "0.1")
    )
    total = count(plain.model, VOCAB).total
    more = training_bytes(averaged, VOCAB, Arithmetic()) - training_bytes(plain, VOCAB, Arithmetic())
    assert more == 4 * total
    files = plain.checkpoint.keep + 3
    assert disk_bytes(averaged, total) - disk_bytes(plain, total) == 4 * total * files


def test_the_outer_step_is_two_more_copies_of_the_weights() -> None:
    plain, outer = (resolve(preset="tiny", assignments=[f"train.outer_steps={n}"]) for n in (0, 30))
    total = count(plain.model, VOCAB).total
    assert (
        training_bytes(outer, VOCAB, Arithmetic()) - training_bytes(plain, VOCAB, Arithmetic()) == 8 * total
    )
    assert disk_bytes(outer, total) - disk_bytes(plain, total) == 8 * total * (plain.checkpoint.keep + 3)


def test_adapters_save_the_moments_and_gradients_of_the_weights() -> None:
    whole, adapters = (settings_of(optimizer="adamw", rank=rank) for rank in (0, 4))
    total, few = count(whole.model, VOCAB).total, count_adapters(adapters.model, adapters.lora)
    assert 0 < few < total / 10
    kept = whole.checkpoint.keep + 3
    assert disk_bytes(whole, total) - disk_bytes(adapters, total) == 4 * (2 * total - 3 * few) * kept


@functools.cache
def kernels() -> Kernels | None:
    """The compiled kernels, where this machine has a compiler."""
    return choose_runtime(settings_of().runtime, read_machine()).kernels


def runtime_named(name: str) -> Runtime:
    compiled = kernels()
    if name != "torch" and compiled is None:
        pytest.skip("no C++ compiler")
    if name == "int8" and not has_fast_int8(read_machine().instruction_sets):
        pytest.skip("runs on this CPU refuse int8: it has no products of int8")
    precision = "int8" if name == "int8" else "fp32"
    used = None if name == "torch" else compiled
    return Runtime(torch.device("cpu"), "CPU", torch.get_num_threads(), precision, kernels=used)


def most_in_use(settings: Settings, runtime: Runtime) -> int:
    """The most bytes that torch held at once over two updates, by its own account of its allocator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    count, train = settings.train.grad_accum_steps, settings.train
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        parts = build_random_parts(settings, VOCAB, runtime)
        for step in range(2):
            batches = range(step * count, (step + 1) * count)
            training_update(parts, batches, runtime, train.grad_clip, StepTimer())
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events: Iterable[Any] = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([count for _, count in changes]).max())


@pytest.mark.parametrize("name", COMPUTED_IN)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2, "optimizer": "adamw"},
        {"tie_embeddings": "false", "n_kv_head": 2},
        GPT2,
        {**GPT2, "dropout": 0.1},
        {"mlp": "relu2"},
        {"mlp": "relu", "n_inner": 512},
        {"activation_checkpointing": "true"},
        {"masked": True},
        {"batch": 1, "block_size": 32, "n_embd": 256},  # the update is more than the activations
        {"taught": True},
        {"rank": 8, "optimizer": "adamw"},
        {"rank": 8, "optimizer": "adamw", "accumulate": 2, **GPT2},
    ],
    ids=str,
)
def test_what_is_counted_is_what_torch_holds(changes: dict[str, Any], name: str) -> None:
    settings, runtime = settings_of(**changes), runtime_named(name)
    measured = most_in_use(settings, runtime)
    teacher = settings.model if settings.train.has_teacher else None
    counted = training_bytes(settings, VOCAB, arithmetic_of(runtime), teacher)
    assert counted == pytest.approx(measured, rel=0.07)


@pytest.mark.parametrize("name", COMPUTED_IN)
def test_a_large_vocabulary_is_never_held_for_every_token(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    vocab_size = 8192
    monkeypatch.setitem(globals(), "VOCAB", vocab_size)
    settings, runtime = settings_of(n_layer=1), runtime_named(name)
    counted = training_bytes(settings, vocab_size, arithmetic_of(runtime))
    assert counted == pytest.approx(most_in_use(settings, runtime), rel=0.07)
    assert counted < 2 * 4 * 8 * 128 * vocab_size


def test_kernels_keep_less_and_int8_keeps_least() -> None:
    settings = resolve(preset="medium")
    assert settings.data.vocab_size is not None
    int8, fp32, plain = (
        training_bytes(settings, settings.data.vocab_size, arithmetic)
        for arithmetic in (Arithmetic(True, 16), Arithmetic(False, 16), Arithmetic())
    )
    assert int8 < fp32 < plain


def test_widths_that_no_vector_divides_are_counted_as_torch_computes_them() -> None:
    odd = settings_of(n_embd=60, head_dim=15, n_inner=150, position="learned")
    assert training_bytes(odd, VOCAB, Arithmetic(True, 16)) == training_bytes(odd, VOCAB, Arithmetic())


def test_this_machines_vectors_are_told_by_its_instruction_sets() -> None:
    compiled = kernels()
    if compiled is None:
        pytest.skip("no C++ compiler")
    assert vector_lanes(read_machine().instruction_sets) == compiled.lanes


@pytest.mark.usefixtures("kernels_of_this_cpu")
@pytest.mark.parametrize("sets", CPUS.values(), ids=CPUS)
@pytest.mark.parametrize("width", [16, 512])
def test_what_is_expected_of_a_run_is_what_it_chooses(sets: tuple[str, ...], width: int) -> None:
    machine = replace(read_machine(), instruction_sets=sets)
    settings = settings_of(n_embd=width)
    chosen = choose_runtime(settings.runtime, machine, settings.model).precision
    assert expected_arithmetic(settings, machine).int8 is (chosen == "int8")


def test_what_is_requested_is_expected() -> None:
    machine = read_machine()
    asked = resolve(assignments=["runtime.precision=fp32", "runtime.kernels=off"])
    assert expected_arithmetic(asked, machine) == Arithmetic()
    elsewhere = resolve(assignments=["runtime.device=cuda"])
    assert expected_arithmetic(elsewhere, machine) == Arithmetic()


def test_what_is_too_large_is_refused_with_what_fits() -> None:
    settings, arithmetic = settings_of(batch=64), Arithmetic()
    needed = memory_bytes(settings, VOCAB, arithmetic)
    check_memory(settings, VOCAB, arithmetic, needed)
    with pytest.raises(ResourceError) as refused:
        check_memory(settings, VOCAB, arithmetic, needed - 1)
    assert "train.micro_batch_size=32 --set train.grad_accum_steps=2" in refused.value.hint
    with pytest.raises(ResourceError, match="memory"):
        check_memory(settings, VOCAB, arithmetic, memory.PROCESS_BYTES)


def test_counting_does_not_load_torch() -> None:
    code = (
        "import sys, cpulm.estimate.requirements, cpulm.estimate.preset_sizes\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
