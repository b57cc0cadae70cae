"""The logits with the cache are those without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpulm.model.cache import KVCache
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings, changed

VOCAB = 41
SMALL = ModelSettings(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, block_size=24)
GPT2 = changed(SMALL, norm="layernorm", position="learned", mlp="gelu", bias=True, qk_norm=False, n_kv_head=4)
BOTH = pytest.mark.parametrize("settings", [SMALL, GPT2, changed(SMALL, position="sinusoidal")])


def model_of(settings: ModelSettings) -> Transformer:
    model = Transformer(settings, VOCAB).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # larger weights than fresh ones: every token should matter
        for parameter in model.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(0.0, 0.2, generator=generator))
    return model


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))


@BOTH
@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 1, 5, 6], [1, 19]], ids=str)
@torch.inference_mode()
def test_any_cut_gives_the_uncached_logits(settings: ModelSettings, pieces: list[int]) -> None:
    model, idx = model_of(settings), tokens(3, 20)
    cache = KVCache(settings, batch_size=3, max_tokens=20)
    found = torch.cat([model(piece, cache=cache) for piece in idx.split(pieces, dim=1)], dim=1)
    assert cache.length == 20
    torch.testing.assert_close(found, model(idx), atol=1e-5, rtol=1e-4)


@BOTH
@torch.inference_mode()
def test_greedy_tokens_agree(settings: ModelSettings) -> None:
    model, prompt = model_of(settings), tokens(2, 4)
    plain, cached, cache = prompt, prompt, KVCache(settings, 2, 24)
    new = prompt
    for _ in range(20):
        plain = torch.cat((plain, model(plain, last_only=True).argmax(-1)), dim=1)
        new = model(new, cache=cache, last_only=True).argmax(-1)
        cached = torch.cat((cached, new), dim=1)
    assert torch.equal(plain, cached)


@torch.inference_mode()
def test_a_cleared_cache_begins_anew() -> None:
    model, cache = model_of(SMALL), KVCache(SMALL, 1, 24)
    model(tokens(1, 9), cache=cache)
    cache.clear()
    torch.testing.assert_close(model(tokens(1, 5), cache=cache), model(tokens(1, 5)))


def test_room_is_bounded() -> None:
    with pytest.raises(ValueError, match="a cache of 25 tokens for a block_size of 24"):
        KVCache(SMALL, 1, 25)
    model, cache = model_of(SMALL), KVCache(SMALL, 1, 6)
    model(tokens(1, 4), cache=cache)
    with pytest.raises(ValueError, match="7 tokens, and the limit is 6"):
        model(tokens(1, 3), cache=cache)
    assert cache.length == 4
