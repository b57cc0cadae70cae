"""Attention maps are the weights that the model attends with, for every kind of block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import BLOCK, SHAPES, a_model

from cpulm.data.tokenizer import byte_tokenizer
from cpulm.inspection.attention import MOST_NUMBERS, attention, attention_weights, max_tokens_shown
from cpulm.inspection.tokens import TokenTexts
from cpulm.settings import ModelSettings

TEXTS = TokenTexts(byte_tokenizer())
PROMPT = [5, 3, 8, 1, 9, 2, 30, 3]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_weights_give_what_torch_attends_to(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, 4, 7, 8, generator=generator)
    k, v = (torch.randn(2, kv_heads, 7, 8, generator=generator) for _ in range(2))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    found = attention_weights(q, k) @ v.repeat_interleave(4 // kv_heads, dim=1)
    torch.testing.assert_close(found, expected)


def test_documents_that_do_not_see_each_other_have_maps_that_say_so() -> None:
    model = a_model()
    model.mask_documents(PROMPT[3])
    found = attention(model, PROMPT, TEXTS)
    assert (found.weights[:, :, 3:, :3] == 0).all()
    assert (found.weights[:, :, 4, 3] > 0).all()
    np.testing.assert_allclose(found.weights.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_maps_applied_to_the_values_give_what_the_block_made_of_them(kind: str) -> None:
    model = a_model(**SHAPES[kind])
    inputs: list[Any] = []
    outputs: list[torch.Tensor] = []
    for block in model.blocks:
        block.get_submodule("attn").register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        block.get_submodule("attn.out").register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    found = attention(model, PROMPT, TEXTS)
    settings, T = model.settings, len(PROMPT)
    assert found.weights.shape == (settings.n_layer, settings.n_head, T, T)
    for layer, block in enumerate(model.blocks):
        qkv = block.get_submodule("attn.qkv")(inputs[layer])
        v = qkv.view(1, T, -1, settings.head_width)[:, :, -settings.kv_heads :].transpose(1, 2)
        v = v.repeat_interleave(settings.n_head // settings.kv_heads, dim=1)
        made = (torch.from_numpy(found.weights[layer])[None] @ v).transpose(1, 2).reshape(1, T, -1)
        torch.testing.assert_close(made, outputs[layer], rtol=1e-4, atol=1e-5)


def test_every_row_sums_to_one_and_none_attends_to_later_tokens() -> None:
    found = attention(a_model(), PROMPT, TEXTS)
    np.testing.assert_allclose(found.weights.sum(-1), 1.0, rtol=1e-5)
    assert (np.triu(found.weights, 1) == 0).all()
    assert found.tokens == TEXTS.texts(PROMPT)


def test_of_a_long_prompt_the_last_tokens_are_shown() -> None:
    found = attention(a_model(), [*range(20), *PROMPT], TEXTS)
    assert found.tokens == TEXTS.texts([*range(20), *PROMPT][-BLOCK:])


def test_a_single_token_attends_to_itself() -> None:
    found = attention(a_model(), [7], TEXTS)
    assert (found.weights == 1).all()
    assert [head.to_self for head in found.heads] == [1.0] * 4


def test_heads_in_figures_are_those_of_their_maps() -> None:
    found = attention(a_model(), PROMPT, TEXTS)
    head = next(each for each in found.heads if (each.layer, each.head) == (1, 0))
    rows = found.weights[1, 0].astype(np.float64)
    T = len(PROMPT)
    assert head.to_self == pytest.approx(np.mean([rows[t, t] for t in range(1, T)]))
    assert head.to_previous == pytest.approx(np.mean([rows[t, t - 1] for t in range(1, T)]))
    assert head.to_first == pytest.approx(np.mean([rows[t, 0] for t in range(2, T)]))
    distances = [sum(rows[t, s] * (t - s) for s in range(t + 1)) for t in range(1, T)]
    assert head.distance == pytest.approx(np.mean(distances))
    entropies = [-sum(p * np.log(p) for p in rows[t, : t + 1]) for t in range(1, T)]
    assert head.entropy == pytest.approx(np.mean(entropies))


@pytest.mark.parametrize(("layers", "heads", "expected"), [(4, 4, 64), (12, 12, 52), (48, 25, 17)])
def test_many_heads_leave_room_for_fewer_tokens(layers: int, heads: int, expected: int) -> None:
    settings = ModelSettings(n_layer=layers, n_head=heads, n_embd=heads * 4, block_size=256)
    assert max_tokens_shown(settings) == expected
    assert layers * heads * expected * (expected + 1) // 2 <= MOST_NUMBERS
