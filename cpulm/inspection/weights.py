"""Statistics of a model's weight matrices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cpulm.inspection.model_report import Matrix
from cpulm.model.transformer import Transformer


@torch.inference_mode()
def matrices(model: Transformer) -> tuple[Matrix, ...]:
    """Return the statistics of every matrix of ``model``, in the model's order."""
    return tuple(_matrix_statistics(name, matrix.float()) for name, matrix in split_matrices(model))


def split_matrices(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield every matrix with its name; fused ones are split into their parts."""
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


def _matrix_statistics(name: str, matrix: Tensor) -> Matrix:
    rows, columns = matrix.shape
    norm = float(torch.linalg.vector_norm(matrix))
    # The eigenvalues of the smaller product are the squares of the singular values, at a fraction of the time
    # of the singular values themselves if one side is a vocabulary.
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
