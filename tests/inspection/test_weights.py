"""Embeddings, matrices and vocabulary of a trained model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import GPT2, a_model

from cpulm.data.tokenizer import byte_tokenizer, train_bpe
from cpulm.errors import SettingsError
from cpulm.inspection.embeddings import MOST_ON_MAP, chosen_tokens, embedding_map, neighbours, token_of
from cpulm.inspection.tokens import TokenTexts
from cpulm.inspection.unused_tokens import count_tokens, vocabulary_use
from cpulm.inspection.weights import matrices
from cpulm.model.transformer import Transformer

BYTES = byte_tokenizer()
TEXTS = TokenTexts(BYTES)
WORDS = train_bpe(["the cat sat on the mat, the cat that sat. " * 30], 270)


def test_neighbours_are_the_largest_cosines_without_the_token_itself() -> None:
    generator = torch.Generator().manual_seed(2)
    embedding = torch.randn(257, 12, generator=generator)
    candidates = np.arange(30, 90)
    (found,) = neighbours(embedding, [65], candidates, TEXTS)
    cosines = torch.nn.functional.cosine_similarity(embedding[65][None], embedding, dim=-1)
    others = sorted((each for each in candidates if each != 65), key=lambda each: -float(cosines[each]))
    assert found.token == "A"
    assert [each.token for each in found.nearest] == [TEXTS.text(int(each)) for each in others[:8]]
    np.testing.assert_allclose(
        [each.cosine for each in found.nearest], [float(cosines[each]) for each in others[:8]], rtol=1e-5
    )


def test_the_only_candidate_may_be_the_token_itself() -> None:
    (found,) = neighbours(torch.eye(257), [65], np.array([65]), TEXTS)
    assert found.nearest == ()


def test_frequent_words_after_a_blank_come_first() -> None:
    texts = TokenTexts(WORDS)
    the, t = WORDS.encode(" the")[0], WORDS.encode("t")[0]
    assert texts.text(the) == " the"
    order = np.array([t, the, *(each for each in range(WORDS.vocab_size) if each not in (t, the))])
    chosen = chosen_tokens(order, texts)
    assert chosen[0] == the
    assert len(chosen) == 12
    assert chosen[-1] in (t, *order[:30])


def test_a_word_is_one_token_by_itself_or_after_a_blank() -> None:
    texts = TokenTexts(WORDS)
    assert texts.text(token_of("the", WORDS, texts)) in ("the", " the")
    assert token_of(" the", WORDS, texts) == WORDS.encode(" the")[0]


def test_a_word_of_several_tokens_is_refused_with_its_tokens() -> None:
    with pytest.raises(SettingsError, match="'dog' is not a single token; its tokens are: 'd', 'o', 'g'"):
        token_of("dog", BYTES, TEXTS)


def test_the_map_is_the_plane_of_the_largest_variance() -> None:
    generator = torch.Generator().manual_seed(3)
    embedding = torch.randn(257, 24, generator=generator) * torch.linspace(4, 0.1, 24)
    order = np.arange(200)
    found = embedding_map(embedding, order, TEXTS)
    rows = (embedding[:200] - embedding[:200].mean(0)).double()
    u, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
    shares = sizes.square() / sizes.square().sum()
    np.testing.assert_allclose(found.explained, shares[:2], rtol=1e-4)
    for values, number in ((found.x, 0), (found.y, 1)):
        exact = (u[:, number] * sizes[number]).numpy()
        assert abs(np.corrcoef(values, exact)[0, 1]) > 0.99999
        assert values[np.abs(values).argmax()] > 0
    assert found.tokens == TEXTS.texts(order)
    assert found.kinds[ord("a")] == "word start"


def test_the_map_holds_the_most_frequent_tokens_only_and_bears_a_single_one() -> None:
    many = embedding_map(torch.randn(2000, 4), np.arange(2000)[::-1].copy(), TEXTS)
    assert len(many.tokens) == len(many.x) == len(many.y) == MOST_ON_MAP
    one = embedding_map(torch.randn(257, 4), np.array([3]), TEXTS)
    assert (one.x.tolist(), one.y.tolist()) == ([0.0], [0.0])


def test_fused_matrices_are_taken_apart_and_every_weight_is_in_one() -> None:
    model = a_model(n_layer=1, n_kv_head=1)
    found = {each.name: each for each in matrices(model)}
    names = ["wte", "blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v", "blocks.0.attn.out"]
    names += ["blocks.0.mlp.gate", "blocks.0.mlp.up", "blocks.0.mlp.down", "lm_head"]
    assert sorted(found) == sorted(names)
    assert (found["blocks.0.attn.q"].rows, found["blocks.0.attn.k"].rows) == (16, 8)
    numbers = sum(each.rows * each.columns for each in found.values())
    assert numbers == sum(p.numel() for p in model.parameters() if p.ndim == 2)


def test_matrices_in_figures_agree_with_their_singular_values() -> None:
    model = a_model(**GPT2)
    for each in matrices(model):
        if each.name in dict(model.named_modules()):
            weight = model.get_submodule(each.name).get_parameter("weight")
            sizes = torch.linalg.svdvals(weight)
            assert each.norm == pytest.approx(float(sizes.norm()), rel=1e-4)
            assert each.rms == pytest.approx(float(weight.square().mean().sqrt()), rel=1e-4)
            assert each.spectral_norm == pytest.approx(float(sizes[0]), rel=1e-3)
            assert each.stable_rank == pytest.approx(float((sizes / sizes[0]).square().sum()), rel=1e-2)


def test_a_matrix_of_zeros_has_no_rank() -> None:
    model = a_model()
    model.wte.weight.zero_()
    zeros = next(each for each in matrices(model) if each.name == "wte")
    assert (zeros.norm, zeros.spectral_norm, zeros.stable_rank) == (0.0, 0.0, 0.0)


def test_tokens_are_counted_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpulm.inspection.unused_tokens._CHUNK", 3)
    told: list[int] = []
    counts = count_tokens(np.array([1, 1, 0, 4, 1, 4, 1], dtype=np.uint16), 6, told.append)
    assert counts.tolist() == [1, 4, 0, 0, 2, 0]
    assert sum(told) == 7


def test_unused_tokens_do_not_occur_in_the_training_data() -> None:
    counts = np.full(257, 11)
    counts[[65, 66]] = 0
    counts[[70, 71, 72]] = 10
    found = vocabulary_use(a_model(257), counts, TEXTS)
    assert (found.basis, found.unused, found.rare, found.examples) == ("training data", 2, 3, ("A", "B"))


def test_without_the_data_they_are_those_whose_embedding_has_its_first_norm() -> None:
    model = Transformer(a_model(n_embd=64, n_head=4).settings, 257)
    model.init_weights(0)
    with torch.no_grad():
        model.wte.weight[20:] *= 3.0
    found = vocabulary_use(model, None, TEXTS)
    assert (found.basis, found.unused, found.rare) == ("embedding norm", 20, None)
    assert found.examples == TEXTS.texts(range(20))


def test_with_tied_embeddings_and_no_data_it_is_unknown() -> None:
    found = vocabulary_use(a_model(257, tie_embeddings=True), None, TEXTS)
    assert (found.basis, found.unused, found.examples) == ("unknown", None, ())
    assert "training data is not available" in found.note
