"""Low-rank adapters: what they add, what they learn, and the same model without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import BLOCK, GPT2, a_model
from torch import Tensor

from cpulm.layer_shapes import LinearShape, Part
from cpulm.model import fused
from cpulm.model.counts import count_adapters, flops_per_token
from cpulm.model.int8_linear import TorchQuantizer
from cpulm.model.lora import Adapter, LowRank, adapt, merged
from cpulm.model.transformer import Transformer
from cpulm.settings.lora_settings import LoraSettings

LORA = LoraSettings(rank=2, alpha=6.0)
TOKENS = torch.arange(2 * BLOCK).remainder(37).view(2, BLOCK)
KINDS: dict[str, dict[str, Any]] = {"qwen3": {"n_kv_head": 1}, "gpt2": GPT2}


def adapted(kind: str, lora: LoraSettings = LORA) -> Transformer:
    """A small model whose adapters have learned something."""
    model = a_model(**KINDS[kind])
    adapt(model, lora, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return model


def plain(model: Transformer, lora: LoraSettings = LORA) -> Transformer:
    """The model without adapters that computes the same."""
    result = Transformer(model.settings, model.vocab_size)
    result.load_state_dict(merged(model.state_dict(), model.settings, lora))
    return result.eval()


def test_an_adapter_is_its_products_scaled_for_each_projection() -> None:
    lora = LoraSettings(rank=1, alpha=2.0, projections=["q", "v"])
    adapter = Adapter(LinearShape(2, 4, 2, (Part("q", 2), Part("k", 1), Part("v", 1))), lora)
    assert [name for name, _ in adapter.named_parameters()] == ["q.a", "q.b", "v.a", "v.b"]
    values = {"q.a": [[1.0, 2.0]], "q.b": [[1.0], [-1.0]], "v.a": [[0.0, 1.0]], "v.b": [[3.0]]}
    adapter.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    # q: 2 * (1 * 3 + 2 * 4) = 22 and -22; k has none; v: 2 * 3 * 4
    x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert adapter(y, x).tolist() == [[23.0, -20.0, 3.0, 28.0]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert adapter(y, x).tolist() == [[23.0, -20.0, 3.0, 28.0]]


@pytest.mark.parametrize("x_needs_it", [True, False])
def test_its_gradients_are_those_of_the_formula(x_needs_it: bool) -> None:
    pairs = [torch.randn(2, 3), torch.randn(4, 2), torch.randn(2, 3), torch.randn(1, 2)]
    wanted = [matrix.double().requires_grad_(True) for matrix in pairs]
    y = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=x_needs_it)

    def of(y: Tensor, x: Tensor, *matrices: Tensor) -> Tensor:
        parts = [(4, matrices[:2]), (2, None), (1, matrices[2:])]
        return fused.add_low_rank(y, x, parts, 1.5)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(of, (y, x, *wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_new_adapters_is_the_model_that_it_was(kind: str) -> None:
    before = a_model(**KINDS[kind])
    logits = before(TOKENS)
    adapt(before, LORA, 1)
    assert torch.equal(before(TOKENS), logits)
    again = a_model(**KINDS[kind])
    adapt(again, LORA, 1)
    for name, value in before.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    bound = 16**-0.5
    drawn = before.state_dict()["blocks.0.attn.qkv.adapter.q.a"]
    assert 0.5 * bound < float(drawn.abs().max()) <= bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projections", [[], ["q", "v"], ["k", "out", "up", "down"]])
def test_merged_weights_compute_the_same(kind: str, projections: list[Any]) -> None:
    lora = LoraSettings(rank=2, alpha=6.0, projections=projections)
    model = adapted(kind, lora)
    without = plain(model, lora)
    torch.testing.assert_close(without(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(TOKENS), a_model(**KINDS[kind])(TOKENS), atol=0.1)
    parameters = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert parameters == count_adapters(model.settings, lora)


def gradients(model: Transformer) -> dict[str, Tensor]:
    """The gradients of one step on :data:`TOKENS`, by the names of the parameters that have one."""
    model.train()
    model(TOKENS, targets=TOKENS.roll(-1, 1)).backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_get_what_the_gradients_of_the_weights_are_to_them(kind: str, int8: bool) -> None:
    model = adapted(kind)
    without = plain(model).requires_grad_(True)
    if int8:
        model.use_int8(TorchQuantizer())
    ours, theirs = gradients(model), gradients(without)
    assert all(".adapter." in name for name in ours)
    for layer in range(2):
        for name, shape in zip(("attn.qkv", "attn.out"), model.settings.linear_layers[:2], strict=True):
            of_weight, row = theirs[f"blocks.{layer}.{name}.weight"], 0
            for part in shape.parts:
                rows = of_weight[row : row + part.rows]
                low_rank = model.get_submodule(f"blocks.{layer}.{name}.adapter.{part.name}")
                assert isinstance(low_rank, LowRank)
                ours_a, ours_b = (ours[f"blocks.{layer}.{name}.adapter.{part.name}.{m}"] for m in "ab")
                for found, expected in (
                    (ours_a, LORA.scale * low_rank.b.T @ rows),
                    (ours_b, LORA.scale * rows @ low_rank.a.T),
                ):
                    alike = torch.cosine_similarity(found.flatten(), expected.detach().flatten(), dim=0)
                    assert alike > (0.9 if int8 else 1 - 1e-5), (name, part.name)
                    assert int8 or float(found.norm() / expected.detach().norm()) == pytest.approx(
                        1, rel=1e-4
                    )
                row += part.rows


def test_frozen_weights_cost_two_thirds_of_the_operations() -> None:
    settings = a_model().settings
    whole, frozen = flops_per_token(settings, 40), flops_per_token(settings, 40, LORA)
    attention = 6 * 2 * 2 * 8 * BLOCK
    assert frozen - attention - 6 * count_adapters(settings, LORA) == pytest.approx(
        (whole - attention) * 2 / 3
    )
