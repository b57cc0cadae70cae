"""Vocabularies that the user gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpulm.data.encoder import END, bulk_encoder
from cpulm.data.prepare import prepare
from cpulm.data.tokenizer import Tokenizer
from cpulm.data.word_list import word_list_tokenizer
from cpulm.errors import DataError
from cpulm.settings import DataSettings


def listed(folder: Path, *lines: str) -> Path:
    path = folder / "words.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_ids_follow_the_list_with_special_tokens_after_the_words(tmp_path: Path) -> None:
    tokenizer = word_list_tokenizer(listed(tmp_path, "<|route|>", "7A", "", " x1 ", "y2"))
    assert tokenizer.kind == "word"
    assert tokenizer.encode("y2 7A\nx1") == [2, 0, 1]
    assert tokenizer.inner.token_to_id("<|route|>") == 3
    assert (tokenizer.eot_id, tokenizer.vocab_size) == (4, 5)
    assert tokenizer.decode([3, 0, 2, 4]) == "7A y2"
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.kind, again.eot_id, again.encode("y2")) == ("word", 4, [2])


@pytest.mark.parametrize("word", ["z9", "<|route|>", "<|endoftext|>"])
def test_an_unknown_word_is_an_error_or_the_token_for_such(tmp_path: Path, word: str) -> None:
    strict = word_list_tokenizer(listed(tmp_path, "<|route|>", "7A"))
    for encode in (strict.encode, bulk_encoder(strict)):
        with pytest.raises(DataError, match="has no word") as caught:
            encode(f"7A {word}")
        assert repr(word) in caught.value.message
        assert "<unk>" in caught.value.hint
    lenient = word_list_tokenizer(listed(tmp_path, "<|route|>", "7A", "<unk>"))
    assert lenient.encode(f"7A {word}") == [0, 1]
    assert bulk_encoder(lenient)(f"7A {word}{END}7A{END}").tolist() == [0, 1, 3, 0, 3]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a b"], "line 1: 'a b' holds white space"),
        (["a", "b", "a"], "line 3: 'a' is in line 1 too"),
        (["", "<|only|>", "<unk>"], "holds no words"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_error(tmp_path: Path, lines: list[str], message: str) -> None:
    path = listed(tmp_path, *lines)
    with pytest.raises(DataError) as caught:
        word_list_tokenizer(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    for broken in (b"\xff\xfe", None):
        if broken is None:
            path.unlink()
        else:
            path.write_bytes(broken)
        with pytest.raises(DataError, match="cannot read the vocabulary"):
            word_list_tokenizer(path)


def test_rows_become_tokens_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))
    rows = "".join(f'{("6B", "7A")[n % 2]},"[[{n % 3}, {n % 5}]]"\n' for n in range(100))
    (tmp_path / "routes.csv").write_text(f"grade,holds\n{rows}")
    words = listed(tmp_path, "6B", "7A", *(f"x{n}" for n in range(3)), *(f"y{n}" for n in range(5)))
    data = DataSettings(
        source=[str(tmp_path / "routes.csv")],
        template="{grade} {holds|each:'x{0} y{1}'|list}",
        tokenizer=str(words),
    )
    folder = prepare(data, emit=lambda _: None, should_stop=lambda: False)
    assert folder.vocab_size == 11
    assert folder.train[:8].tolist() == [0, 2, 5, 10, 1, 3, 6, 10]
