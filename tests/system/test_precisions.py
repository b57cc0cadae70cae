"""The rules by which a CPU trains in int8, bf16 or fp32."""

from __future__ import annotations

import pytest
from cpus import CPUS

from cpulm.settings import ModelSettings
from cpulm.system.precisions import cpu_precision, has_fast_int8

WIDTHS = (16, 32, 48, 64, 128, 256, 512)


def chosen(cpu: str, width: int, kernels: bool = True) -> str:
    model = ModelSettings(n_embd=width, n_head=1)
    return cpu_precision(CPUS[cpu], kernels=kernels, model=model)[0]


@pytest.mark.parametrize(
    ("cpu", "least"),
    [
        ("AVX2", None),
        ("AVX-512", None),
        ("VNNI", 128),
        ("VNNI and BF16", 128),
        ("AMX", 128),
        ("AVX-VNNI", 256),
        ("NEON", None),
        ("NEON-dotprod", None),
        ("NEON-i8mm", None),
    ],
)
def test_int8_from_a_width_on(cpu: str, least: int | None) -> None:
    precisions = {width: chosen(cpu, width) for width in WIDTHS}
    assert precisions == {
        width: "int8" if least is not None and width >= least else "fp32" for width in WIDTHS
    }


@pytest.mark.parametrize("cpu", CPUS)
def test_without_kernels_only_bf16_in_wide_models_pays(cpu: str) -> None:
    fast = cpu in ("VNNI and BF16", "AMX")
    assert chosen(cpu, 512, kernels=False) == ("bf16" if fast else "fp32")
    assert chosen(cpu, 128, kernels=False) == "fp32"


@pytest.mark.parametrize(
    "model",
    [
        ModelSettings(n_embd=136, n_head=1),
        ModelSettings(n_embd=128, n_head=4, head_dim=30),
        ModelSettings(n_embd=128, n_head=4, n_kv_head=1, head_dim=20),
        ModelSettings(n_embd=128, n_head=4, n_inner=500),
    ],
    ids=["n_embd", "queries", "keys", "inner"],
)
def test_widths_between_vectors_are_fp32(model: ModelSettings) -> None:
    precision, reason = cpu_precision(CPUS["VNNI"], kernels=True, model=model)
    assert precision == "fp32"
    assert "multiples of 16" in reason


@pytest.mark.parametrize("instructions", ["AVX-VNNI", "NEON-dotprod", "NEON-i8mm", "AMX-INT8"])
@pytest.mark.parametrize("width", [16, 512])
def test_a_precision_that_was_not_measured_is_reported(instructions: str, width: int) -> None:
    model = ModelSettings(n_embd=width, n_head=1)
    _, reason = cpu_precision((instructions,), kernels=True, model=model)
    assert "not measured" in reason


def test_an_instruction_set_that_was_not_measured_is_mentioned() -> None:
    precision, reason = cpu_precision(CPUS["AMX"], kernels=True, model=ModelSettings(n_embd=512, n_head=1))
    assert precision == "int8"
    assert "AMX-INT8 was not measured" in reason


def test_int8_may_be_requested_where_it_is_fast() -> None:
    assert [cpu for cpu in CPUS if not has_fast_int8(CPUS[cpu])] == ["AVX2", "AVX-512", "NEON"]
