"""From settings to optimizers: which parameter is updated how."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cpulm.native.int8 import Int8Kernels
from cpulm.optim.divided_muon import DividedMuon, Owners
from cpulm.optim.eager import AdamW
from cpulm.optim.muon import Muon
from cpulm.optim.outer import Average, OuterStep
from cpulm.settings import TrainSettings

Optimizers = list[torch.optim.Optimizer]

OUTER_ALONE, OUTER_AVERAGED = (0.7, 0.6), (1.0, 0.0)
"""Rate and momentum of the outer step in one process, and of several: the plain average had the lowest loss
of all that were tried in 10 to 60 rounds (benchmarks/EXPERIMENTS.md). In one it would change nothing."""


def build_optimizers(
    model: nn.Module,
    settings: TrainSettings,
    int8: Int8Kernels | None = None,
    average: Average | None = None,
    owners: Owners | None = None,
) -> Optimizers:
    """The optimizers that together update every parameter of ``model`` once, but for frozen ones.

    =========================================  ==========================  ============
    parameters                                 optimizer and rate          weight decay
    =========================================  ==========================  ============
    matrices inside the blocks, adapters       Muon ``muon_lr``            yes
    the same with ``optimizer: adamw``         AdamW ``lr``                yes
    token embedding, positions, head           AdamW ``lr``                no
    norms, biases                              AdamW ``lr``                no
    =========================================  ==========================  ============

    Embeddings are not decayed: a rare token's row would shrink between its few occurrences, and no later norm
    makes up for its length.

    Every group carries its ``peak_lr``, which :func:`set_lr_scale` multiplies. With ``outer_steps`` the last
    optimizer is the outer step of all parameters, whose rate is constant.

    Args:
        int8: the kernels of a model that trains in int8, for Muon's products.
        average: over the processes of a run, which end their rounds together.
        owners: the processes of a run that share every update, and divide Muon's matrices.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {
        name: parameter
        for name, parameter in trained.items()
        if parameter.ndim == 2 and ".blocks." in f".{name}"
    }
    rest = [parameter for name, parameter in trained.items() if name not in matrices]
    adamw_groups = [_group(rest, settings.lr, 0.0)]
    optimizers: Optimizers = []
    if settings.optimizer == "muon":
        by_blocks: dict[int | None, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in matrices.items():
            by_blocks[_block_rows(model, name)].append(parameter)
        muon_groups = [
            {**_group(parameters, settings.muon_lr, settings.weight_decay), "block_rows": block_rows}
            for block_rows, parameters in by_blocks.items()
        ]
        momentum = settings.momentum
        optimizers.append(
            Muon(muon_groups, momentum=momentum, kernels=int8)
            if owners is None
            else DividedMuon(muon_groups, owners, momentum=momentum, kernels=int8)
        )
    else:
        adamw_groups.append(_group(list(matrices.values()), settings.lr, settings.weight_decay))
    betas = (settings.beta1, settings.beta2)
    optimizers.append(AdamW(adamw_groups, betas=betas, fused=_has_fused(rest)))
    if settings.outer_steps:
        every = settings.outer_steps if average is None else 0
        lr, momentum = OUTER_ALONE if average is None else OUTER_AVERAGED
        lr = lr if settings.outer_lr is None else settings.outer_lr
        momentum = momentum if settings.outer_momentum is None else settings.outer_momentum
        optimizers.append(OuterStep(trained.values(), every, lr, momentum, average))
    return optimizers


def set_lr_scale(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    """Set the learning rate of every group that has a peak to ``scale`` times it."""
    for optimizer in optimizers:
        for group in (group for group in optimizer.param_groups if "peak_lr" in group):
            group["lr"] = group["peak_lr"] * scale


def _group(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> dict[str, Any]:
    return {"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay}


def _block_rows(model: nn.Module, name: str) -> int | None:
    """Rows of the parts of a fused matrix that Muon orthogonalises separately; None for a matrix of one part.

    Heads, gate and up are separate matrices stored together. Validation loss after 120 steps (4 layers, width
    128, bytes of Python, one seed): 1.997 with fused matrices as one, 1.917 with q, k and v separate, 1.897
    with every head separate, 1.892 with gate and up separate too, in the same time.
    """
    rows: Any = getattr(model.get_submodule(name.rpartition(".")[0]), "matrix_rows", None)
    return None if rows == model.get_parameter(name).size(0) else rows


def _has_fused(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether AdamW's one-kernel update runs where the parameters are."""
    return all(parameter.device.type in ("cpu", "cuda", "mps") for parameter in parameters)
