"""Marks: special tokens of a template, and the mask of what follows a condition, up to the token file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpulm.data import encode_corpus
from cpulm.data.encoder import END, bulk_encoder, counting_losses
from cpulm.data.marked_text import LossMask, encoder_of_marks, marked, pack, unpack
from cpulm.data.marks import LOSS_OFF, Mark
from cpulm.data.prepare import prepare
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import byte_tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.settings import DataSettings

ROWS = "name,kind,n\n" + "".join(f"<|x|> ann{n},{'abc'[n % 3]},{n}\n" for n in range(300))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache for each test."""
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))


def made(folder: Path, **settings: Any) -> TokenFolder:
    path = folder / "rows.csv"
    path.write_text(ROWS)
    values = {"tokenizer": "byte", "vocab_size": None, **settings}
    data = DataSettings.model_validate({"source": [str(path)], **values})
    return prepare(data, emit=lambda _: None, should_stop=lambda: False)


def counted_texts(folder: TokenFolder) -> list[str]:
    """The text of the tokens that count, document by document; ``.`` for the end-of-text token."""
    assert folder.train_mask is not None
    counts = unpack(np.asarray(folder.train_mask), np.arange(len(folder.train)))
    eot = folder.tokenizer.eot_id
    texts = [""]
    for token, counted in zip(folder.train.tolist(), counts.tolist(), strict=True):
        texts[-1] += ("." if token == eot else folder.tokenizer.decode([token])) if counted else ""
        if token == eot:
            texts.append("")
    return texts[:-1]


def test_the_mask_counts_each_token_from_its_marks_on() -> None:
    eot, off, on = 9, 0xFFFFFFFE, 0xFFFFFFFF
    ids = np.array([1, off, 2, 3, on, 4, eot, 5, off, 6, eot, 7, off, 8], dtype=np.uint32)
    wanted = [(1, 1), (2, 0), (3, 0), (4, 1), (eot, 1), (5, 1), (6, 0), (eot, 0), (7, 1), (8, 0)]
    whole = LossMask(eot).take(ids)
    assert list(zip(*map(np.ndarray.tolist, whole), strict=True)) == wanted
    for cut in range(len(ids) + 1):
        mask = LossMask(eot)
        parts = [mask.take(ids[:cut]), mask.take(ids[cut:])]
        assert np.concatenate([part[1] for part in parts]).tolist() == whole[1].tolist()


def test_a_mark_is_a_border_and_text_never_is_one() -> None:
    tokenizer = byte_tokenizer().with_special_tokens(["<|a|>"])
    encode = encoder_of_marks(tokenizer, counting_losses(tokenizer, bulk_encoder(tokenizer)))
    text = marked("<|a|>é", [Mark(0, "<|a|>"), Mark(5, LOSS_OFF), Mark(6, "<|a|>")]) + END
    ids, lost = encode(text)
    assert ids.tolist() == [257, *b"<|a|>", 0xFFFFFFFE, *"é".encode(), 257, 256]
    assert lost == 0
    with pytest.raises(DataError, match=r"no special token <\|b\|>"):
        encode(marked("x", [Mark(0, "<|b|>")]))


def test_bits_are_packed_and_found_again() -> None:
    bits = np.random.default_rng(0).random(77) < 0.5
    places = np.array([[76, 0, 8], [7, 31, 32]])
    assert unpack(np.frombuffer(pack(bits), dtype=np.uint8), places).tolist() == bits[places].tolist()


@pytest.mark.parametrize("jobs", [100, 1 << 18])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "word", "char"])
def test_what_follows_the_condition_counts(
    tmp_path: Path, tokenizer: str, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_corpus, "JOB_CHARACTERS", jobs)
    size = 300 if tokenizer == "bpe" else None
    template = "{kind} <|sep|>{name}"
    folder = made(tmp_path, tokenizer=tokenizer, vocab_size=size, template=template, loss_after="kind")
    texts = counted_texts(folder)
    assert len(texts) == folder.train_documents
    joined = "" if tokenizer == "word" else " "
    assert all(text.strip().startswith(f"<|x|>{joined}ann") and text.endswith(".") for text in texts)
    counts = folder.meta["val"]
    assert folder.bytes_per_token == counts["counted_bytes"] / counts["counted_tokens"]
    assert folder.tokenizer.inner.token_to_id("<|sep|>") == folder.vocab_size - 1
    folder.verify()


def test_a_mask_is_a_part_of_the_data(tmp_path: Path) -> None:
    plain = made(tmp_path, template="{kind} {name}")
    masked = made(tmp_path, template="{kind} {name}", loss_after="kind")
    assert plain.train_mask is None
    assert masked.digest != plain.digest
    assert np.array_equal(np.asarray(masked.train), np.asarray(plain.train))
    mask = masked.path / "train.mask"
    mask.write_bytes(bytes(len(mask.read_bytes())))
    with pytest.raises(DataError, match=r"train\.mask is damaged"):
        masked.verify()
    mask.unlink()
    with pytest.raises(DataError, match=r"train\.mask is missing"):
        TokenFolder.open(masked.path)


def test_values_of_columns_are_counted_unless_they_are_too_many(tmp_path: Path) -> None:
    folder = made(tmp_path, template="{kind} {n} {kind|upper}", val_fraction=0.1)
    assert list(folder.columns) == ["kind", "n"]
    assert sum(folder.columns["kind"].values()) == folder.train_documents
    rows = ROWS + "".join(f"x,d,{n}\n" for n in range(300, 1400))
    (tmp_path / "many").mkdir()
    path = tmp_path / "many" / "rows.csv"
    path.write_text(rows)
    data = DataSettings(source=[str(path)], tokenizer="byte", vocab_size=None, template="{kind} {n}")
    many = prepare(data, emit=lambda _: None, should_stop=lambda: False)
    assert list(many.columns) == ["kind"]
    assert next(iter(many.columns["kind"])) == "d"


def test_records_are_held_out_whole(tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    path.write_text("name\n" + "".join(f"{'long ' * 600}{n}\n" for n in range(4)))
    data = DataSettings(
        source=[str(path)], tokenizer="byte", vocab_size=None, template="{name}", val_fraction=0.1
    )
    folder = prepare(data, emit=lambda _: None, should_stop=lambda: False)
    assert folder.meta["ends_held_out"] == 0
    assert (folder.train_documents, folder.meta["val"]["documents"]) == (3, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_after": "kind"}, "needs a template"),
        (
            {"template": "{kind}", "loss_after": "kin"},
            "'kin': the template has no such column",
        ),
        ({"template": "{kind}<|endoftext|>"}, "ends a document within its text"),
    ],
)
def test_settings_that_do_not_fit_are_one_error(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        made(tmp_path, **settings)
