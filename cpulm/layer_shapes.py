"""The activations and the shapes of linear layers, for all who build, count or measure them."""

from __future__ import annotations

from typing import Literal, NamedTuple

Activation = Literal["swiglu", "gelu", "gelu_erf", "relu", "relu2"]


class ActivationTraits(NamedTuple):
    """What counting parameters and memory, and exporting, need to know of an activation.

    Attributes:
        in_transformers: its name in the configurations of transformers; that of the gate's if gated.
        llama_cpp_error: the largest difference of the hidden layer in llama.cpp's block, which computes a
            like function; None if it has none.
        gated: whether it multiplies by a gate, a second projection of the same width.
        keeps_result: whether its backward pass reads its result, which the next layer keeps anyway.
        temporaries: numbers for each of the MLP's hidden units that torch allocates in its backward pass.
    """

    in_transformers: str
    llama_cpp_error: float | None
    gated: bool = False
    keeps_result: bool = False
    temporaries: int = 0


ACTIVATIONS: dict[Activation, ActivationTraits] = {
    "swiglu": ActivationTraits("silu", 0.0, gated=True, temporaries=1),
    "gelu": ActivationTraits("gelu_new", 0.0),
    "gelu_erf": ActivationTraits("gelu", 0.0005),
    "relu": ActivationTraits("relu", None, keeps_result=True),
    "relu2": ActivationTraits("relu2", None, temporaries=2),
}
"""The activations; ``cpulm.model.activations`` has their formulas."""


class Part(NamedTuple):
    """A projection that shares its matrix with others: its name, and its rows of the matrix."""

    name: str
    rows: int


class LinearShape(NamedTuple):
    """The shape of a linear layer.

    Attributes:
        inputs: columns of its weight.
        outputs: rows of its weight.
        matrix_rows: rows of each of the matrices that lie one below the other in the weight: a head of the
            joint projection, gate or up. Muon orthogonalizes each by itself.
        parts: the projections that lie one below the other in the weight.
    """

    inputs: int
    outputs: int
    matrix_rows: int
    parts: tuple[Part, ...] = ()


class BlockLayers(NamedTuple):
    """The linear layers of one block."""

    qkv: LinearShape
    out: LinearShape
    up: LinearShape
    down: LinearShape
