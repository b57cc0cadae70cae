"""float32 products in the parts of the pool are torch's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpulm.native import products
from cpulm.native.kernels import Kernels


@pytest.fixture
def pool(kernels_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kernels = Kernels(kernels_library)
    if kernels.pool is None or not kernels.has_products:
        pytest.skip("no pools or no BLAS on this system")
    kernels.pool.use(3)
    monkeypatch.setattr(products, "pooled", True)
    yield
    kernels.pool.use(0)


def matrix(rows: int, columns: int, layout: str) -> Tensor:
    made = torch.randn(rows, columns)
    if layout == "transposed":
        return made.t().contiguous().t()
    return torch.randn(rows, 2 * columns)[:, ::2] if layout == "neither" else made


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("b_layout", ["rows", "transposed", "neither"])
@pytest.mark.parametrize("a_layout", ["rows", "transposed", "neither"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 2), (37, 24, 53), (130, 64, 96)])
@pytest.mark.usefixtures("pool")
def test_products_of_all_layouts(
    shape: tuple[int, int, int], a_layout: str, b_layout: str, add: bool
) -> None:
    rows, depth, columns = shape
    a, b, before = matrix(rows, depth, a_layout), matrix(depth, columns, b_layout), torch.randn(rows, columns)
    out = products.mm(a, b, out=before.clone(), add=add)
    wanted = a.double() @ b.double() + (before.double() if add else 0)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.usefixtures("pool")
def test_a_linear_layer_and_its_gradients(bias: bool) -> None:
    x = torch.randn(3, 20, 48, requires_grad=True)
    weight, added = torch.randn(64, 48, requires_grad=True), torch.randn(64, requires_grad=True)
    inputs = [x, weight, added] if bias else [x, weight]
    ours, torchs = (f(x, weight, added if bias else None) for f in (products.linear, F.linear))
    torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(torchs, inputs, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("pool")
def test_what_the_pool_does_not_take_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other types, an output that is not contiguous, and no open pool."""
    a, b = torch.randn(6, 8), torch.randn(8, 10)
    double = torch.empty(6, 10, dtype=torch.float64)
    assert torch.equal(products.mm(a.double(), b.double(), out=double), a.double() @ b.double())
    apart = torch.empty(6, 20)[:, ::2]
    torch.testing.assert_close(products.mm(a, b, out=apart), a @ b)
    with monkeypatch.context() as changed:
        changed.setattr("cpulm.native.thread_pool._open", None)
        assert torch.equal(products.mm(a, b, out=torch.empty(6, 10)), a @ b)
