"""An activation has two entries: its traits in layer_shapes, its formula in the model; a page has a third."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch

import cpulm
from cpulm.layer_shapes import ACTIVATIONS, Activation
from cpulm.model.activations import FORMULAS
from cpulm.model.counts import count
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings, changed

SMALL = ModelSettings(n_layer=1, n_head=2, n_embd=16, block_size=8)
PACKAGE = Path(cpulm.__file__).parent


def test_the_two_places_agree() -> None:
    assert list(ACTIVATIONS) == list(get_args(Activation))
    assert list(FORMULAS) == list(ACTIVATIONS)


def names_in(path: Path) -> Iterator[str]:
    """Activations that a module names as a string."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and node.value in ACTIVATIONS:
            yield node.value


def test_no_other_module_names_an_activation() -> None:
    """But for the default."""
    places = {"layer_shapes.py": set(ACTIVATIONS), "activations.py": set(ACTIVATIONS)}
    found = {path.name: named for path in PACKAGE.rglob("*.py") if (named := set(names_in(path)))}
    assert found == {**places, "model_settings.py": {ModelSettings().mlp}}


def test_the_page_that_is_a_model_has_every_formula() -> None:
    """But for the gated one, which has a method."""
    script = (PACKAGE / "export" / "page_files" / "engine.js").read_text(encoding="utf-8")
    table = script.partition("const ACTIVATIONS = {")[2].partition("};")[0]
    ungated = {name for name, traits in ACTIVATIONS.items() if not traits.gated}
    assert set(re.findall(r"^  (\w+): ", table, re.MULTILINE)) == ungated


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_formula_goes_from_the_first_matrix_to_the_hidden_layer(name: Activation) -> None:
    settings = changed(SMALL, mlp=name)
    layers = settings.linear_layers
    hidden = FORMULAS[name].function(torch.randn(3, layers.up.outputs))
    assert hidden.shape == (3, layers.down.inputs)
    assert layers.up.outputs == settings.inner_width * (2 if ACTIVATIONS[name].gated else 1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_shapes_of_the_settings_are_those_of_the_model(name: Activation, bias: bool) -> None:
    settings = changed(SMALL, mlp=name, n_kv_head=1, bias=bias)
    model = Transformer(settings, 29)
    block = model.blocks[0]
    linear = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
    assert sorted((m.in_features, m.out_features) for m in linear) == sorted(
        (shape.inputs, shape.outputs) for shape in settings.linear_layers
    )
    assert sum(p.numel() for p in model.parameters()) == count(settings, 29).total
