"""The matrices of a model in figures."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cpulm.inspection.model_report import Matrix
from cpulm.model.transformer import Transformer


@torch.inference_mode()
def matrices(model: Transformer) -> tuple[Matrix, ...]:
    """Every matrix of ``model`` in figures, in the order of the model."""
    return tuple(_in_figures(name, matrix.float()) for name, matrix in taken_apart(model))


def taken_apart(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Every matrix with its name, the fused ones as the matrices that they are made of."""
    settings = model.settings
    width, narrow = settings.n_head * settings.head_width, settings.kv_heads * settings.head_width
    for full_name, parameter in model.named_parameters():
        if parameter.ndim != 2:
            continue
        name = full_name.removesuffix(".weight")
        base, _, part = name.rpartition(".")
        if part == "qkv":
            pieces = parameter.split((width, narrow, narrow))
            yield from zip((f"{base}.{each}" for each in "qkv"), pieces, strict=True)
        elif part == "gate_up":
            yield from zip((f"{base}.gate", f"{base}.up"), parameter.chunk(2), strict=True)
        else:
            yield name, parameter


def _in_figures(name: str, matrix: Tensor) -> Matrix:
    rows, columns = matrix.shape
    norm = float(torch.linalg.vector_norm(matrix))
    # The eigenvalues of the smaller product are the squares of the singular values, for a fraction of the
    # time of the singular values themselves where one side is a vocabulary.
    small = matrix.mT @ matrix if rows > columns else matrix @ matrix.mT
    largest = max(0.0, float(torch.linalg.eigvalsh(small)[-1]))
    return Matrix(
        name=name,
        rows=rows,
        columns=columns,
        norm=norm,
        rms=norm / (rows * columns) ** 0.5,
        spectral_norm=largest**0.5,
        stable_rank=norm**2 / largest if largest else 0.0,
    )
