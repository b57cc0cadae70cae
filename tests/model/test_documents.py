"""Documents packed into one window: which tokens each token sees, with the kernels and with torch."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cpulm.model.cache import KVCache
from cpulm.model.documents import document_mask, first_of_document
from cpulm.model.transformer import Transformer
from cpulm.native.kernels import Kernels
from cpulm.settings import ModelSettings, changed

VOCAB, EOT = 48, 47
SMALL = ModelSettings(n_layer=2, n_head=4, n_kv_head=2, n_embd=64, head_dim=16, n_inner=64, block_size=64)
GPT2 = changed(
    SMALL, norm="layernorm", position="learned", mlp="gelu", bias=True, qk_norm=False, n_kv_head=None
)
BLOCKS = pytest.mark.parametrize("settings", [SMALL, GPT2], ids=["qwen3", "gpt2"])


@pytest.fixture(scope="module")
def kernels(kernels_library: Path) -> Kernels:
    return Kernels(kernels_library)


def masked(settings: ModelSettings, eot_id: int | None = EOT, used: Kernels | None = None) -> Transformer:
    model = Transformer(settings, VOCAB)
    model.init_weights(0)
    with torch.no_grad():  # fresh weights hardly attend: these have opinions
        model.wte.weight.mul_(20)
    model.use_kernels(used)
    model.mask_documents(eot_id)
    return model


def text(length: int, seed: int) -> Tensor:
    """Tokens of one document [length], without the end-of-text token."""
    return torch.randint(EOT, (length,), generator=torch.Generator().manual_seed(seed))


def packed() -> Tensor:
    """Two windows [2, 64]: four documents in one; in the other a long one, an empty one and a third."""
    eot = torch.tensor([EOT])
    first = torch.cat([text(10, 1), eot, text(5, 2), eot, text(29, 3), eot, text(17, 4)])
    second = torch.cat([text(51, 5), eot, eot, text(11, 6)])
    return torch.stack([first, second])


def parts() -> list[tuple[int, int, int]]:
    """Row, begin and end of every document of the windows."""
    borders = [[0, 10, 16, 46, 64], [0, 51, 52, 64]]
    return [(row, *pair) for row, ends in enumerate(borders) for pair in itertools.pairwise(ends)]


def gradients(model: Transformer) -> dict[str, Tensor]:
    model.zero_grad()
    idx = packed()
    model(idx, targets=idx.roll(-1, 1)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_mark_opens_a_document_and_the_window_opens_the_first() -> None:
    first = first_of_document(packed(), EOT)
    assert first.dtype is torch.int32
    for row, begin, end in parts():
        assert set(first[row, begin:end].tolist()) == {begin}


def test_kernels_and_torch_are_told_the_same() -> None:
    idx = packed()
    column = torch.arange(64)
    seen = (column <= column[:, None]) & (column >= first_of_document(idx, EOT)[:, :, None])
    mask = document_mask(idx, EOT, torch.float32)
    assert torch.equal(mask == 0, seen.unsqueeze(1))
    assert torch.equal(mask == -torch.inf, ~seen.unsqueeze(1))


@pytest.mark.parametrize(
    "settings",
    [*(changed(SMALL, position=name) for name in ("rope", "none", "sinusoidal")), GPT2],
    ids=["rope", "none", "sinusoidal", "gpt2"],
)
@pytest.mark.parametrize("way", ["torch", "kernels"])
def test_packed_documents_have_the_logits_they_have_alone(
    settings: ModelSettings, way: str, request: pytest.FixtureRequest
) -> None:
    """So the loss of a record depends neither on its neighbours nor on its place in the window."""
    used = request.getfixturevalue("kernels") if way == "kernels" else None
    model = masked(settings, used=used)
    idx = packed()
    with torch.no_grad():
        together = model(idx)
        for row, begin, end in parts():
            alone = model(idx[row : row + 1, begin:end])
            torch.testing.assert_close(together[row : row + 1, begin:end], alone, rtol=1e-3, atol=1e-3)
        model.mask_documents(None)
        assert not torch.allclose(model(idx)[0, 16:], together[0, 16:], atol=0.1)


@BLOCKS
def test_a_document_does_not_move_the_ones_beside_it(settings: ModelSettings) -> None:
    model, idx = masked(settings), packed()
    other = idx.clone()
    other[0, 18:22] = (other[0, 18:22] + 1) % EOT
    with torch.no_grad():
        same = (model(idx) == model(other)).all(-1)
    assert same[0, :18].all()
    assert not same[0, 18:46].any()
    assert same[0, 46:].all()
    assert same[1].all()


@BLOCKS
def test_kernels_and_torch_agree_in_loss_and_gradients(settings: ModelSettings, kernels: Kernels) -> None:
    plain, ours = masked(settings), masked(settings, used=kernels)
    idx = packed()
    torch.testing.assert_close(ours(idx), plain(idx), rtol=1e-3, atol=1e-3)
    expected, found = gradients(plain), gradients(ours)
    for name, grad in expected.items():
        scale = float(grad.abs().max())
        # A sum of parts that cancel each other out has the rounding errors of its parts.
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=3e-4 * scale + 3e-8, msg=name)


@pytest.mark.parametrize("way", ["torch", "kernels"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(
    way: str, dropout: float, request: pytest.FixtureRequest
) -> None:
    used = request.getfixturevalue("kernels") if way == "kernels" else None
    grads = []
    for recompute in (False, True):
        torch.manual_seed(8)
        settings = changed(SMALL, dropout=dropout, activation_checkpointing=recompute)
        grads.append(gradients(masked(settings, used=used)))
    torch.testing.assert_close(grads[0], grads[1])


@BLOCKS
def test_traced_whole_by_the_compiler_with_equal_results(settings: ModelSettings) -> None:
    torch.compiler.reset()
    model = masked(settings)
    traced = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = gradients(model)
    model.zero_grad()
    idx = packed()
    traced(idx, targets=idx.roll(-1, 1)).backward()
    torch.testing.assert_close({name: p.grad for name, p in model.named_parameters()}, expected)


def test_bf16_autocast_runs_and_stays_near() -> None:
    model, idx = masked(changed(SMALL, n_layer=1)), packed()
    targets = idx.roll(-1, 1)
    expected = model(idx, targets=targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(idx, targets=targets)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


def test_one_document_is_as_without_a_mask(kernels: Kernels) -> None:
    idx = text(64, 7).view(1, 64)
    for used in (None, kernels):
        with torch.no_grad():
            plain, found = masked(SMALL, None, used)(idx), masked(SMALL, EOT, used)(idx)
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_with_a_cache_all_tokens_are_one_document() -> None:
    idx = packed()[:1]
    logits = []
    for eot_id in (None, EOT):
        cache = KVCache(SMALL, 1, 64)
        with torch.no_grad():
            logits.append(masked(SMALL, eot_id)(idx, cache=cache))
    assert torch.equal(logits[0], logits[1])
