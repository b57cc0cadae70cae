"""The formulas of the MLP's activations; :data:`cpulm.layer_shapes.ACTIVATIONS` has what counting needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from cpulm.layer_shapes import Activation
from cpulm.model import fused, native_ops
from cpulm.native.kernels import Kernels


class ActivationFormula(NamedTuple):
    """An activation in torch, and in a compiled kernel if there is one.

    Attributes:
        function: from the first matrix's outputs [..., up_width] to the hidden layer [..., inner_width].
        native: the same with the kernels before it.
    """

    function: Callable[[Tensor], Tensor]
    native: Callable[[Kernels, Tensor], Tensor] | None = None


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


FORMULAS: Mapping[Activation, ActivationFormula] = {
    "swiglu": ActivationFormula(fused.swiglu, native_ops.swiglu),
    "gelu": ActivationFormula(partial(F.gelu, approximate="tanh")),
    "gelu_erf": ActivationFormula(F.gelu),
    "relu": ActivationFormula(F.relu),
    "relu2": ActivationFormula(_relu2, native_ops.relu2),
}
