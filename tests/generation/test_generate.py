"""Text generation: the cache against the uncached model, seeds, ends, stop strings, UTF-8."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import BLOCK, SHAPES, a_model

from cpulm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_word
from cpulm.errors import DataError, SettingsError
from cpulm.generation.generate import (
    END_OF_TEXT,
    LENGTH,
    STOP,
    Completion,
    Generation,
    sample_text,
    stream_text,
)
from cpulm.generation.prompt import encode_prompt
from cpulm.generation.sampling import Sampling, penalize_repetition
from cpulm.model.transformer import Transformer

GREEDY = Sampling(temperature=0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices of 16 x 16 are not worth a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def new_tokens(generation: Generation) -> list[list[int]]:
    """The tokens of each text."""
    rows = zip(*generation, strict=True)
    return [[token for token in row if token is not None] for row in rows]


@torch.no_grad()
def uncached(model: Transformer, prompt: list[int], count: int, penalty: float = 1.0) -> list[int]:
    """Greedy tokens from whole forward passes, with the same rule for a full context."""
    text, made = list(prompt), []
    context = list(text) if len(text) <= BLOCK else text[-(BLOCK // 2) :]
    for _ in range(count):
        logits = model(torch.tensor([context]))[:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[:, text] = True
        token = int(penalize_repetition(logits, seen, penalty).argmax())
        made.append(token)
        text.append(token)
        context = [*context, token]
        if len(context) > BLOCK:
            context = context[-(BLOCK // 2) :]
    return made


# The cache against the plain road


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prompt_length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_cached_and_uncached_agree_token_for_token(shape: str, prompt_length: int) -> None:
    model = a_model(**SHAPES[shape])
    prompt = [(7 * place + 3) % 40 for place in range(prompt_length)]
    count = 3 * BLOCK
    expected = uncached(model, prompt, count)
    generation = Generation(model, prompt, max_new_tokens=count, sampling=GREEDY, num_samples=3)
    assert new_tokens(generation) == [expected] * 3
    assert len(set(expected)) > 3


def test_repetition_penalty_counts_the_whole_prompt_and_text() -> None:
    model, prompt, count = a_model(), list(range(20)), 30
    sampling = Sampling(temperature=0, repetition_penalty=3.0)
    expected = uncached(model, prompt, count, penalty=3.0)
    assert new_tokens(Generation(model, prompt, max_new_tokens=count, sampling=sampling)) == [expected]
    assert expected != uncached(model, prompt, count)


@pytest.mark.parametrize("block_size", [2, 3])
def test_the_smallest_contexts_slide_too(block_size: int) -> None:
    model = a_model(block_size=block_size)
    (row,) = new_tokens(Generation(model, [1, 2, 3, 4, 5], max_new_tokens=20, sampling=GREEDY))
    assert len(row) == 20


def test_of_a_long_prompt_only_the_last_half_block_is_read() -> None:
    model = a_model()
    end = list(range(8))
    texts = [
        new_tokens(Generation(model, [*start, *end], max_new_tokens=5, sampling=GREEDY))
        for start in ([9] * 20, [11] * 50)
    ]
    assert texts[0] == texts[1]


# Seeds


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    model = a_model()

    def tokens(seed: int) -> list[list[int]]:
        return new_tokens(Generation(model, [1], max_new_tokens=30, seed=seed, num_samples=2))

    first = tokens(7)
    torch.rand(3)
    assert tokens(7) == first
    assert tokens(8) != first
    assert first[0] != first[1]


def test_a_text_does_not_depend_on_how_many_others_there_are() -> None:
    model = a_model()
    many = new_tokens(Generation(model, [1, 2], max_new_tokens=30, seed=3, num_samples=5))
    few = new_tokens(Generation(model, [1, 2], max_new_tokens=30, seed=3, num_samples=2))
    assert many[:2] == few


def test_texts_are_drawn_independently_from_the_model_s_probabilities() -> None:
    model, count = a_model(vocab_size=6), 8000
    with torch.no_grad():
        expected = (model(torch.tensor([[2]]))[0, -1] / 4).softmax(-1)
    generation = Generation(
        model, [2], max_new_tokens=1, sampling=Sampling(temperature=4.0), num_samples=count, seed=1
    )
    tokens = torch.tensor(next(generation))
    frequencies = torch.bincount(tokens, minlength=6) / count
    assert (frequencies - expected).abs().max() < 4 * math.sqrt(0.25 / count)


# Ends


def test_the_end_of_text_token_ends_its_text_alone() -> None:
    model, end, most = a_model(vocab_size=5), 1, 18

    def steps(*ends: int) -> list[list[int | None]]:
        sampling = Sampling(temperature=3.0)
        return list(
            Generation(
                model, [0], max_new_tokens=most, num_samples=4, end_ids=ends, sampling=sampling, seed=11
            )
        )

    endless = [list(row) for row in zip(*steps(), strict=True)]
    ended = [list(row) for row in zip(*steps(end), strict=True)]
    for free, row in zip(endless, ended, strict=True):
        length = free.index(end) + 1 if end in free else most
        assert row == free[:length] + [None] * (most - length)
    # Texts of several lengths, one of them whole
    lengths = {len(row) - row.count(None) for row in ended}
    assert len(lengths) > 2
    assert most in lengths


def test_end_stops_one_text_and_the_last_one_ends_all() -> None:
    generation = Generation(a_model(), [0], max_new_tokens=10, num_samples=2)
    assert None not in next(generation)
    generation.end(0)
    first, second = next(generation)
    assert first is None
    assert second is not None
    generation.end(1)
    assert list(generation) == []
    assert generation.made_tokens == 2


def test_no_tokens_asked_none_made() -> None:
    assert list(Generation(a_model(), [0], max_new_tokens=0)) == []


@pytest.mark.parametrize("wrong", [{"max_new_tokens": -1}, {"num_samples": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Generation(a_model(), [0], **{"max_new_tokens": 1, **wrong})  # type: ignore[arg-type]


# Characters and stop strings


def complete(tokenizer: Tokenizer, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], Completion]:
    """The pieces shown while the tokens of ``text`` come one by one, until the end."""
    completion, pieces = Completion(tokenizer, stop=stop), []
    for token in tokenizer.encode(text):
        pieces.append(completion.push(token))
        if completion.stop_reason is not None:
            return pieces, completion
    pieces.append(completion.finish(LENGTH))
    return pieces, completion


def test_characters_are_complete_though_their_bytes_arrive_one_by_one() -> None:
    text = "naïve 🙂 日本語"
    pieces, completion = complete(byte_tokenizer(), text)
    assert "".join(pieces) == completion.text == text
    assert all("�" not in piece for piece in pieces)
    assert "🙂" in pieces


def test_a_cut_character_at_the_end_is_shown_as_one() -> None:
    completion, tokenizer = Completion(byte_tokenizer()), byte_tokenizer()
    for token in tokenizer.encode("a🙂")[:-1]:
        completion.push(token)
    completion.finish(LENGTH)
    assert completion.text == "a�"


def test_a_stop_string_over_token_borders_is_never_shown() -> None:
    pieces, completion = complete(byte_tokenizer(), "one\n\ntwo\n\n\nthree", stop=("\n\n\n",))
    assert "".join(pieces) == completion.text == "one\n\ntwo"
    assert completion.stop_reason == STOP


def test_what_only_began_like_a_stop_string_is_shown_at_the_end() -> None:
    pieces, completion = complete(byte_tokenizer(), "wait EN", stop=("END",))
    assert completion.text == "wait EN"
    assert completion.stop_reason == LENGTH
    assert pieces[-1] == "EN"


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="abé", max_size=20),
    stop=st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, completion = complete(byte_tokenizer(), text, stop=tuple(stop))
    # The first stop string is the one that is complete first; of several at once, the longest.
    ends = [
        (place + len(word), place)
        for word in stop
        for place in range(len(text))
        if text.startswith(word, place)
    ]
    expected = text[: min(ends)[1]] if ends else text
    assert "".join(pieces) == completion.text == expected
    assert (completion.stop_reason == STOP) == bool(ends)


def test_the_end_of_text_token_ends_a_completion_and_is_not_shown() -> None:
    tokenizer = byte_tokenizer()
    completion = Completion(tokenizer, stop=("abc",))
    shown = [completion.push(token) for token in [*tokenizer.encode("xab"), tokenizer.eot_id]]
    assert "".join(shown) == completion.text == "xab"
    assert completion.stop_reason == END_OF_TEXT
    assert len(completion.tokens) == 4


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(SettingsError, match="stop string is empty"):
        Completion(byte_tokenizer(), stop=("a", ""))


def test_words_are_joined_to_the_prompt_with_a_space() -> None:
    tokenizer = train_word(["to be or not to be"], None)
    completion = Completion(tokenizer, tokenizer.encode("to be"))
    for token in tokenizer.encode("or not"):
        completion.push(token)
    assert completion.text == " or not"


def test_stream_text_ends_each_text_for_its_own_reason() -> None:
    tokenizer = byte_tokenizer()
    model = a_model(vocab_size=tokenizer.vocab_size)
    plain = [Completion(tokenizer) for _ in range(4)]
    for _ in stream_text(Generation(model, [65], max_new_tokens=30, num_samples=4), plain):
        pass
    stop = plain[1].text[5:8]  # what the second text is known to say
    assert stop

    stopped = [Completion(tokenizer, stop=(stop,)) for _ in range(4)]
    shown = [""] * 4
    for row, piece in stream_text(Generation(model, [65], max_new_tokens=30, num_samples=4), stopped):
        shown[row] += piece
    assert stopped[1].stop_reason == STOP
    for before, after, pieces in zip(plain, stopped, shown, strict=True):
        assert after.text == pieces == before.text.partition(stop)[0]
        assert (after.stop_reason == STOP) == (stop in before.text)
        assert after.stop_reason in (STOP, before.stop_reason)
        assert len(after.tokens) <= len(before.tokens)


# Prompts


def test_an_empty_prompt_is_the_end_of_text_where_that_began_documents_else_a_line_end() -> None:
    tokenizer = byte_tokenizer()
    assert encode_prompt(tokenizer, "", starts_documents=True) == [tokenizer.eot_id]
    assert encode_prompt(tokenizer, "", starts_documents=False) == [ord("\n")]
    assert encode_prompt(tokenizer, "ab", starts_documents=True) == [97, 98]


def test_an_empty_prompt_for_a_vocabulary_without_line_ends_is_the_end_of_text() -> None:
    tokenizer = char_tokenizer("abc")
    assert encode_prompt(tokenizer, "", starts_documents=False) == [tokenizer.eot_id]
    words = train_word(["a b"], None)
    assert encode_prompt(words, " \n", starts_documents=False) == [words.eot_id]


def test_unknown_characters_and_words_of_a_prompt_are_named() -> None:
    with pytest.raises(DataError, match="'é'"):
        encode_prompt(char_tokenizer("abc"), "abé", starts_documents=True)
    with pytest.raises(DataError, match="'whale'"):
        encode_prompt(train_word(["a b"], None), "a whale b", starts_documents=True)


# What the trainer and the command line call


def a_sample(model: Transformer, seed: int = 0, should_stop: Callable[[], bool] = lambda: False) -> str:
    return sample_text(
        model,
        byte_tokenizer(),
        [97, 98],
        max_new_tokens=20,
        temperature=0.8,
        top_k=50,
        seed=seed,
        should_stop=should_stop,
    )


@pytest.mark.parametrize("training", [True, False])
def test_sample_text_leaves_the_model_s_mode_and_the_global_random_state(training: bool) -> None:
    model = a_model(vocab_size=257, dropout=0.5).train(training)
    state = torch.get_rng_state()

    first = a_sample(model, seed=1)
    assert first == a_sample(model, seed=1) != a_sample(model, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training is training
    assert all(module.training is training for module in model.modules())


def test_a_model_trains_on_after_a_sample() -> None:
    model = a_model(vocab_size=257).train().requires_grad_(True)
    a_sample(model)
    model(torch.tensor([[1, 2, 3]]), targets=torch.tensor([[2, 3, 4]])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_sample_ends_when_a_stop_is_requested() -> None:
    asked: list[bool] = []

    def stop_at_the_third() -> bool:
        asked.append(True)
        return len(asked) == 3

    text = a_sample(a_model(vocab_size=257), should_stop=stop_at_the_third)
    assert len(asked) == 3
    assert len(text) < 10
