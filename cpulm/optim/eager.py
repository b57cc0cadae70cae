"""Torch's optimizers without their decorators for torch.compile; cpulm compiles only the model.

At the first call of a decorated method torch imports torch._dynamo, sympy and inductor: 75 MiB, and one to
two seconds before the first update of a run that compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def undecorated(method: _Function) -> _Function:
    """The function that was decorated; ``method`` itself if it was not."""
    function: _Function = unwrap(method)
    return function


class EagerOptimizer(torch.optim.Optimizer):
    """An optimizer whose methods do not import a compiler."""

    add_param_group = undecorated(torch.optim.Optimizer.add_param_group)
    load_state_dict = undecorated(torch.optim.Optimizer.load_state_dict)
    state_dict = undecorated(torch.optim.Optimizer.state_dict)
    zero_grad = undecorated(torch.optim.Optimizer.zero_grad)


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """Torch's AdamW, with the same state."""

    step = torch.no_grad()(undecorated(torch.optim.AdamW.step))
