"""The kernels that a platform wheel ships: which are chosen for a CPU, and what happens to damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cpulm import kernel_variants
from cpulm.execution.runtime import choose_runtime
from cpulm.kernel_variants import VARIANTS, shipped_library
from cpulm.native.library_cache import name_with_digest
from cpulm.settings import RuntimeSettings
from cpulm.system.cpu import INSTRUCTION_SETS
from cpulm.system.machine import Machine, read_machine
from cpulm.system.software import Compiler
from cpulm.training.resume_runtime import differences

CPU = RuntimeSettings(device="cpu", precision="fp32")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "libraries"
    folder.mkdir()
    monkeypatch.setattr(kernel_variants, "SHIPPED", folder)
    return folder


@pytest.fixture
def library(shipped: Path, kernels_library: Path) -> Path:
    """The kernels of this machine, shipped as those for AVX2."""
    name = name_with_digest("avx2", kernels_library.read_bytes(), kernels_library.suffix)
    return Path(shutil.copy(kernels_library, shipped / name))


def machine(*instruction_sets: str, compiler: Compiler | None = None) -> Machine:
    """This machine with other instruction sets; by default without a compiler."""
    problem = "" if compiler else "no C++ compiler was found"
    return replace(
        read_machine(), instruction_sets=instruction_sets, compiler=compiler, compiler_problem=problem
    )


@pytest.mark.parametrize(
    ("instruction_sets", "wanted"),
    [
        (["AVX2"], "avx2"),
        (["AVX2", "AVX-512"], "avx512"),
        (["AVX2", "AVX-VNNI"], "avxvnni"),
        (["AVX2", "AVX-512", "AVX-VNNI", "AVX512-VNNI", "AMX-INT8"], "avx512vnni"),
        (["NEON"], "neon"),
        (["NEON", "NEON-dotprod", "NEON-i8mm"], "i8mm"),
        ([], None),
    ],
)
def test_the_fastest_that_the_cpu_can_run_is_chosen(
    shipped: Path, instruction_sets: Sequence[str], wanted: str | None
) -> None:
    assert shipped_library(instruction_sets) == (None, None)
    for variant in VARIANTS:
        assert variant.instructions in INSTRUCTION_SETS.values()
        (shipped / f"kernels-{variant.name}-0.so").touch()
    library, variant_found = shipped_library(instruction_sets)
    assert (library and library.name) == (wanted and f"kernels-{wanted}-0.so")
    assert (variant_found and variant_found.name) == wanted


def test_without_a_compiler_a_run_has_the_shipped_kernels(library: Path) -> None:
    here = machine("AVX2")
    assert here.has_kernels
    runtime = choose_runtime(CPU, here)
    assert runtime.kernels is not None
    assert runtime.kernels.variant == "AVX2"
    assert runtime.notes[-1] == "norms, attention and activation in kernels for AVX2"
    facts = runtime.facts()
    assert (facts["kernels_compiler"], facts["kernels_key"]) == ("brought by cpulm, for AVX2", library.stem)
    (text,) = differences({**facts, "kernels_compiler": "GCC 12.2.0"}, facts)
    assert text == "how the kernels were compiled GCC 12.2.0 -> brought by cpulm, for AVX2"


def test_a_cpu_that_none_is_for_has_none(library: Path) -> None:
    without = machine("SSE")
    assert not without.has_kernels
    assert choose_runtime(CPU, without).notes[-1] == "no compiled kernels: no C++ compiler was found"


def test_a_damaged_one_is_not_loaded(library: Path, gcc_like: Compiler) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    runtime = choose_runtime(CPU, machine("AVX2"))
    assert runtime.kernels is None
    assert "is damaged; install cpulm again" in runtime.notes[-1]
    compiled = choose_runtime(CPU, replace(read_machine(), compiler=gcc_like))
    if shipped_library(read_machine().instruction_sets)[0] is not None:
        assert compiled.kernels is not None
        assert compiled.kernels.variant == ""
        assert "kernels compiled for this CPU; kernels-avx2-" in compiled.notes[-1]
