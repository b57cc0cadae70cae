"""The kernel for the next token gives the logits of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from kernel_builds import NARROWER, BuildKernels
from torch import Tensor

from cpulm.model.cache import JoinedCaches, KVCache
from cpulm.model.decoding import decoder_shape, quantize
from cpulm.model.lora import adapt, merged
from cpulm.model.transformer import Transformer
from cpulm.native.decode import Decoder
from cpulm.native.kernels import Kernels
from cpulm.settings import ModelSettings, changed
from cpulm.settings.lora_settings import LoraSettings

VOCAB = 41
QWEN3 = ModelSettings(n_layer=2, n_head=4, n_kv_head=2, n_embd=64, head_dim=32, n_inner=96, block_size=24)
GPT2 = changed(QWEN3, norm="layernorm", position="learned", mlp="gelu", bias=True, qk_norm=False, n_kv_head=4)
KINDS = {
    "qwen3": QWEN3,
    "narrow heads": changed(QWEN3, head_dim=16, n_head=6, n_kv_head=1),
    "gpt2": GPT2,
    "exact gelu": changed(GPT2, mlp="gelu_erf", bias=False),
    "relu": changed(GPT2, mlp="relu", position="sinusoidal"),
    "relu2": changed(QWEN3, mlp="relu2", position="none"),
    "biases": changed(QWEN3, bias=True),
}


@pytest.fixture(scope="module")
def kernels(kernels_library: Path) -> Kernels:
    return Kernels(kernels_library)


def model_of(settings: ModelSettings, kernels: Kernels | None) -> Transformer:
    """Weights and norms that all matter, in eval mode."""
    model = Transformer(settings, VOCAB).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(0.1, 0.3, generator=generator))
    model.use_kernels(kernels)
    return model


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))


def in_pieces(model: Transformer, idx: Tensor, pieces: list[int]) -> tuple[Tensor, KVCache]:
    cache = KVCache(model.settings, idx.size(0), idx.size(1))
    return torch.cat([model(piece, cache=cache) for piece in idx.split(pieces, dim=1)], dim=1), cache


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("pieces", [[1] * 20, [7, 1, 1, 5, 1, 5]], ids=str)
@torch.inference_mode()
def test_logits_keys_and_values_are_those_of_torch(
    settings: ModelSettings, rows: int, pieces: list[int], kernels: Kernels
) -> None:
    idx = tokens(rows, 20)
    wanted, plain = in_pieces(model_of(settings, None), idx, pieces)
    found, cache = in_pieces(model_of(settings, kernels), idx, pieces)
    assert cache.decoder is not None
    assert plain.decoder is None
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache.keys, plain.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache.values, plain.values, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_adapters_are_computed_in_torch(kernels: Kernels) -> None:
    model, idx, lora = model_of(QWEN3, kernels), tokens(2, 10), LoraSettings(rank=2)
    adapt(model, lora, 1)
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):
            parameter.fill_(0.1)
    without = Transformer(QWEN3, VOCAB).eval()
    without.load_state_dict(merged(model.state_dict(), QWEN3, lora))
    found, cache = in_pieces(model, idx, [1] * 10)
    assert cache.decoder is None
    torch.testing.assert_close(found, without(idx), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("threads", [1, 3])
@torch.inference_mode()
def test_any_number_of_threads_gives_the_same(threads: int, kernels: Kernels) -> None:
    model, idx, before = model_of(QWEN3, kernels), tokens(2, 10), torch.get_num_threads()
    wanted, _ = in_pieces(model, idx, [1] * 10)
    torch.set_num_threads(threads)
    try:
        found, _ = in_pieces(model, idx, [1] * 10)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, wanted)


@torch.inference_mode()
def test_a_cleared_cache_begins_anew(kernels: Kernels) -> None:
    model, idx = model_of(QWEN3, kernels), tokens(1, 12)
    cache = KVCache(QWEN3, 1, 12)
    for step in range(12):
        model(tokens(1, 12).flip(1)[:, step : step + 1], cache=cache)
    cache.clear()
    found = torch.cat([model(piece, cache=cache) for piece in idx.split(1, dim=1)], dim=1)
    assert torch.equal(found, in_pieces(model, idx, [1] * 12)[0])


@pytest.mark.parametrize("vectors", NARROWER.values(), ids=NARROWER)
@torch.inference_mode()
def test_narrower_vectors_give_the_same(vectors: Sequence[str], build_kernels: BuildKernels) -> None:
    path = build_kernels(*vectors, instead_of="-march=native")
    idx = tokens(2, 8)
    for settings in (QWEN3, GPT2):
        wanted, _ = in_pieces(model_of(settings, None), idx, [1] * 8)
        found, cache = in_pieces(model_of(settings, Kernels(path)), idx, [1] * 8)
        assert cache.decoder is not None
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_where_it_cannot_be_used_torch_does_it(kernels: Kernels) -> None:
    idx = tokens(1, 3)
    with torch.inference_mode():
        odd = changed(QWEN3, n_inner=90)
        assert in_pieces(model_of(odd, kernels), idx, [1, 1, 1])[1].decoder is None
        double = model_of(QWEN3, kernels).double()
        cache = KVCache(QWEN3, 1, 3, torch.float64)
        double(idx[:, :1], cache=cache)
        assert cache.decoder is None
        training = model_of(changed(QWEN3, dropout=0.1), kernels).train()
        assert in_pieces(training, idx, [1, 1, 1])[1].decoder is None
    _, cache = in_pieces(model_of(QWEN3, kernels), idx, [1, 1, 1])
    assert cache.decoder is None  # gradients are wanted


@torch.inference_mode()
def test_a_position_or_batch_that_does_not_fit_is_refused(kernels: Kernels) -> None:
    model = model_of(QWEN3, kernels)
    _, cache = in_pieces(model, tokens(2, 5), [1] * 5)
    decoder, ((sequences, _),) = cache.decoder, cache.placed()
    assert isinstance(decoder, Decoder)
    for position in (5, -1):
        with pytest.raises(ValueError, match=f"at position {position} of a cache for 5"):
            decoder.step(torch.zeros(2, 64), [(sequences, position)], model.cos, model.sin)
    with pytest.raises(ValueError, match="for 2 cached sequences"):
        decoder.step(torch.zeros(3, 64), [(sequences, 0)], model.cos, model.sin)
    with pytest.raises(ValueError, match="of 3 positions for 5 tokens"):
        decoder.step(torch.zeros(2, 64), [(sequences, 4)], model.cos[:3], model.sin[:3])
    other = KVCache(changed(QWEN3, head_dim=16), 2, 5)
    with pytest.raises(ValueError, match="cached sequences"):
        decoder.step(torch.zeros(2, 64), other.placed(), model.cos, model.sin)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
@torch.inference_mode()
def test_joined_caches_give_what_each_gives_alone(settings: ModelSettings, kernels: Kernels) -> None:
    """Bit for bit in the kernels; by rounding in torch."""
    for given, tolerance in ((kernels, 0.0), (None, 1e-4)):
        model = model_of(settings, given)
        prompts = [tokens(2, 9), tokens(1, 4), tokens(3, 1)]
        alone, joined = (
            [KVCache(settings, len(prompt), 9 + extra) for extra, prompt in enumerate(prompts, 3)]
            for _ in range(2)
        )
        for prompt, *caches in zip(prompts, alone, joined, strict=True):
            for cache in caches:
                model(prompt, cache=cache)
        for step in range(3):
            idx = tokens(6, 3)[:, step : step + 1]
            found = model(idx, cache=JoinedCaches(joined))
            wanted = [
                model(part, cache=cache) for part, cache in zip(idx.split([2, 1, 3]), alone, strict=True)
            ]
            torch.testing.assert_close(found, torch.cat(wanted), atol=tolerance, rtol=tolerance)
        assert [cache.length for cache in joined] == [12, 7, 4]
        with pytest.raises(ValueError, match="take one"):
            model(tokens(6, 2), cache=JoinedCaches(joined))


def in_int8(settings: ModelSettings, kernels: Kernels) -> Transformer:
    model = model_of(settings, kernels)
    quantize(model, kernels, lambda size: torch.empty(size, dtype=torch.uint8))
    return model


BLOCKS = {name: changed(KINDS[name], n_inner=128) for name in ("qwen3", "gpt2", "relu2", "biases")}


@pytest.mark.parametrize("settings", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("pieces", [[1] * 20, [7, 1, 1, 5, 1, 5]], ids=str)
@torch.inference_mode()
def test_int8_is_near_fp32_with_a_cache_and_not_used_without(
    settings: ModelSettings, pieces: list[int], kernels: Kernels
) -> None:
    idx, model = tokens(2, 20), in_int8(settings, kernels)
    assert model.writes_in == "int8"
    wanted = model_of(settings, kernels)(idx)
    assert torch.equal(model(idx), wanted)
    found, cache = in_pieces(model, idx, pieces)
    assert cache.decoder is not None
    assert 1e-4 < (found - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.parametrize("settings", BLOCKS.values(), ids=BLOCKS)
@torch.inference_mode()
def test_int8_depends_neither_on_threads_nor_on_other_sequences(
    settings: ModelSettings, kernels: Kernels
) -> None:
    model, idx, before = in_int8(settings, kernels), tokens(11, 9), torch.get_num_threads()
    wanted, _ = in_pieces(model, idx, [1] * 9)
    torch.set_num_threads(3)
    try:
        found, _ = in_pieces(model, idx, [1] * 9)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, wanted)
    for row in (0, 10):
        assert torch.equal(in_pieces(model, idx[row : row + 1], [1] * 9)[0], wanted[row : row + 1])


@torch.inference_mode()
def test_weights_of_q8_0_stay_what_they_are(kernels: Kernels) -> None:
    quants = pytest.importorskip("gguf").quants
    kind = pytest.importorskip("gguf").GGMLQuantizationType.Q8_0
    drawn = torch.empty(70, 96).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))
    weight = torch.from_numpy(quants.dequantize(quants.quantize(drawn.numpy(), kind), kind))
    memory = torch.empty(kernels.block_matrix_bytes(weight), dtype=torch.uint8)
    found = kernels.block_matrix(weight, memory).product(torch.eye(96)).T
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=0.0)


def test_matrices_that_do_not_fit_are_refused(kernels: Kernels) -> None:
    with pytest.raises(ValueError, match="blocks are of 32"):
        kernels.block_matrix_bytes(torch.zeros(4, 48))
    with pytest.raises(ValueError, match="contiguous"):
        kernels.block_matrix(torch.zeros(4, 64), torch.empty(5, dtype=torch.uint8))
    matrix = kernels.block_matrix(
        torch.zeros(8, 64), torch.empty(kernels.block_matrix_bytes(torch.zeros(8, 64)), dtype=torch.uint8)
    )
    with pytest.raises(ValueError, match="contiguous"):
        matrix.product(torch.zeros(3, 32))
    odd = model_of(changed(QWEN3, n_inner=80), kernels)
    assert kernels.can_decode(decoder_shape(odd, in_blocks=False))
    assert not kernels.can_decode(decoder_shape(odd, in_blocks=True))
