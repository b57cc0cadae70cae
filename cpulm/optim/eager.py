"""Optimizers without what torch wraps around theirs for torch.compile, which here compiles the model alone.

At the first call of such a method torch imports torch._dynamo, and with it sympy and inductor: 75 MiB, and
one to two seconds before the first update of a run that compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def undecorated(method: _Function) -> _Function:
    """What ``method`` was before it was decorated; itself where it is not."""
    function: _Function = unwrap(method)
    return function


class EagerOptimizer(torch.optim.Optimizer):
    """An optimizer whose methods import no compiler."""

    add_param_group = undecorated(torch.optim.Optimizer.add_param_group)
    load_state_dict = undecorated(torch.optim.Optimizer.load_state_dict)
    state_dict = undecorated(torch.optim.Optimizer.state_dict)
    zero_grad = undecorated(torch.optim.Optimizer.zero_grad)


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """Torch's, and its states."""

    step = torch.no_grad()(undecorated(torch.optim.AdamW.step))
