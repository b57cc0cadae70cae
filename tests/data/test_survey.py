"""What a look at text finds before a model is trained on it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cpulm.data.likely_secrets import SecretCounter
from cpulm.data.near_duplicates import NearDuplicates
from cpulm.data.survey import Survey, inspect_text
from cpulm.errors import SettingsError
from cpulm.settings import DataSettings
from cpulm.ui.text_report import text_report

WORDS = [f"word{n}" for n in range(60)]
LONG = " ".join(WORDS)
TEXTS = [
    LONG,
    LONG,
    LONG.replace("word30 ", "another "),
    " ".join(reversed(WORDS)),
    "mail ann.lee@example.org or bob@example.com",
    "cafÃ© and donâ€™t",
    "lost \ufffd and \x07",
    "key = sk-abcdefghijklmnopqrstuvwx1234",
    *(f"short {n}" for n in range(20)),
]


@pytest.fixture
def looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Survey:
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    data = DataSettings(source=[str(path)], tokenizer="byte")
    return inspect_text(data, 0, emit=lambda _: None, should_stop=lambda: False)


def test_documents_lengths_and_tokens_are_counted(looked_at: Survey) -> None:
    sizes = sorted(len(text.encode()) + 1 for text in TEXTS)
    assert looked_at.documents == len(TEXTS)
    assert looked_at.text_bytes == sum(sizes) - len(TEXTS)
    assert looked_at.tokens == sum(sizes)
    assert (looked_at.lengths.smallest, looked_at.lengths.largest) == (sizes[0], sizes[-1])
    assert sum(count for _, _, count in looked_at.lengths.bars) == len(TEXTS)
    assert dict(looked_at.frequent)["w"] == sum(text.count("w") for text in TEXTS)
    assert looked_at.never_used[0] == 257 - len({*"".join(TEXTS).encode()}) - 1


def test_exact_and_near_duplicates_are_told_apart(looked_at: Survey) -> None:
    assert looked_at.duplicates == 1
    assert looked_at.near_duplicates == 1
    assert looked_at.compared == 3
    assert looked_at.not_compared == {"with fewer than 8 words": len(TEXTS) - 1 - 3}


def test_damage_and_secrets_are_counted_and_masked(looked_at: Survey) -> None:
    assert sum(looked_at.troubles.values()) == 4
    assert looked_at.secrets["e-mail addresses"] == (2, "a***@***.org")
    assert looked_at.secrets["API keys (sk-...)"] == (1, "sk-a*** (31 characters)")
    assert len(looked_at.secrets) == 2


def test_three_documents_are_shown_with_their_tokens(looked_at: Survey) -> None:
    assert len(looked_at.samples) == 3
    for sample in looked_at.samples:
        assert sample.text in TEXTS
        assert "".join(sample.tokens) == sample.text or not sample.text.isascii()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN RSA PRIVATE KEY-----", "private keys"),
        ("id AKIAIOSFODNN7EXAMPLE", "AWS access keys"),
        ("ghp_" + "a1B2" * 9, "GitHub tokens"),
        ('password = "hunter2hunter2"', "passwords in assignments"),
        ("xoxb-123456789012-abc", "Slack tokens"),
        ("AIza" + "b" * 35, "Google API keys"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijk", "JSON web tokens"),
        ("the password is not here; a@b is no address; task-" + "a" * 30, None),
    ],
)
def test_what_looks_like_a_secret_is_known_by_its_kind(text: str, kind: str | None) -> None:
    counter = SecretCounter()
    counter.add(text)
    assert set(counter.found) == ({kind} if kind else set())
    assert all(text[8:] not in first for _, first in counter.found.values() if kind != "private keys")


def test_near_duplicates_need_enough_in_common() -> None:
    near = NearDuplicates()
    for text in (LONG, LONG + " more", " ".join(WORDS[:30] + WORDS[:30]), "too short to compare"):
        near.add(text)
    assert (near.found, near.compared) == (1, 3)


def test_what_is_not_compared_is_said_with_its_reason(looked_at: Survey) -> None:
    def near_duplicates(survey: Survey) -> str:
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(next(text_report(survey)))
        return next(line for line in console.export_text().splitlines() if "near duplicates" in line)

    nothing = replace(looked_at, near_duplicates=0, compared=0, not_compared={"with fewer than 8 words": 24})
    assert near_duplicates(nothing).endswith(
        "0 of 0 documents compared; not compared: 24 with fewer than 8 words"
    )
    near = NearDuplicates()
    near.MOST = 2
    for text in (LONG, LONG, LONG, "short"):
        near.add(text)
    assert near.not_compared == {"with fewer than 8 words": 1, "after the first 2": 1}


def test_tokens_have_no_text_to_look_at(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    for name in ("meta.json", "train.bin", "val.bin", "tokenizer.json"):
        (folder / name).write_text("{}")
    with pytest.raises(SettingsError, match="holds tokens"):
        inspect_text(DataSettings(source=[str(folder)]), 0, emit=lambda _: None, should_stop=lambda: False)
