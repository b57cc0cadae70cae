"""Which precision a model writes in, and that its weights stay what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import a_model

from cpulm.execution.runtime import Runtime
from cpulm.execution.writing import prepare_to_write
from cpulm.model.cache import KVCache
from cpulm.native.kernels import Kernels

RUNTIME = Runtime(torch.device("cpu"), "a CPU", 2, "fp32")


@pytest.fixture
def runtime(kernels_library: Path) -> Runtime:
    return replace(RUNTIME, kernels=Kernels(kernels_library))


@pytest.mark.parametrize(("precision", "written"), [("auto", "int8"), ("int8", "int8"), ("fp32", "fp32")])
@torch.inference_mode()
def test_the_precision_is_the_requested_one_and_the_weights_do_not_change(
    runtime: Runtime, precision: str, written: str
) -> None:
    model, idx = a_model(n_embd=64, n_inner=96), torch.arange(9)[None]
    wanted, weights = model(idx), {name: weight.clone() for name, weight in model.state_dict().items()}
    prepare_to_write(model, runtime, precision)
    assert model.writes_in == written
    torch.testing.assert_close(model(idx), wanted)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    found = model(idx, cache=KVCache(model.settings, 1, 9))
    difference = float((found - wanted).norm() / wanted.norm())
    assert difference < 1e-5 if written == "fp32" else 1e-4 < difference < 0.1


def test_it_is_fp32_without_kernels_and_for_widths_without_whole_blocks(runtime: Runtime) -> None:
    for model, used in ((a_model(n_embd=64), RUNTIME), (a_model(n_embd=48), runtime)):
        prepare_to_write(model, used, "auto")
        assert model.writes_in == "fp32"
