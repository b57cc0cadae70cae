"""Restores the states of optimizers from a file that may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cpulm.optim.outer import OuterStep

LIKE_PARAMETER = frozenset({"momentum", "exp_avg", "exp_avg_sq", "anchor", "velocity", "lost"})
"""State tensors of the shape and dtype of their parameter."""
STATES = ({"momentum"}, {"step", "exp_avg", "exp_avg_sq"})
"""The names of Muon's state and of AdamW's, which is recognised by its ``betas``."""


def restore_state(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Continue from the parameters' states in ``stored``, which ``optimizer.state_dict()`` gave.

    The groups stay as they were built: peak rates, betas and the blocks of Muon's matrices come from the
    settings. ``lr`` is that of the last update; the next update sets it again. The outer step's rate is
    constant.

    Raises:
        ValueError: if a state is not one of ``optimizer`` on its parameters. Kernels write to it by address.
    """
    states = stored["state"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(states, dict) or not all(type(index) is int for index in states):
        raise ValueError("an optimizer's states have no numbers")
    if not states.keys() <= set(range(len(parameters))):
        raise ValueError("an optimizer has a state without a parameter")
    names = STATES["betas" in optimizer.defaults]
    if isinstance(optimizer, OuterStep):
        names = optimizer.state_names
        if len(states) < len(parameters):  # the others have none before the first update
            raise ValueError("a parameter has no state of the outer step")
    for index, state in states.items():
        if not isinstance(state, dict) or state.keys() != names:
            raise ValueError(f"the state of parameter {index} does not consist of {', '.join(sorted(names))}")
        for name, value in state.items():
            _require_fit(index, name, value, parameters[index])
    groups = optimizer.state_dict()["param_groups"]
    for group, old in zip(groups, stored["param_groups"], strict=True):
        if "peak_lr" not in group:
            continue
        if not isinstance(old["lr"], float) or not 0 <= old["lr"] <= group["peak_lr"]:
            raise ValueError("a learning rate is not one of the settings")
        group["lr"] = old["lr"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _require_fit(index: int, name: str, value: object, parameter: Tensor) -> None:
    shape, dtype = parameter.shape, parameter.dtype
    if name not in LIKE_PARAMETER:
        shape, dtype = torch.Size(), torch.float32
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
        raise ValueError(f"{name} of parameter {index} is not {dtype} of {list(shape)}")
    if name not in LIKE_PARAMETER and not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} of parameter {index} is {float(value)}")
