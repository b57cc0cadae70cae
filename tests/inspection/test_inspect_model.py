"""Inspects a run's model on its validation split, on a given text, and without either."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import of, settings_for, train

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.errors import DataError, SettingsError, StoppedError
from cpulm.events import Event, Progress
from cpulm.inspection.inspect_model import InspectionRequest, inspect_model
from cpulm.inspection.model_report import ModelReport

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(400))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of twelve updates on one document."""
    folder = tmp_path_factory.mktemp("look")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    threads = torch.get_num_threads()
    train(settings_for(folder / "text.txt"), folder / "run")
    yield folder / "run"
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def look(run: Path) -> ModelReport:
    return inspect_model(run)


@pytest.fixture
def alone(run: Path, tmp_path: Path) -> Path:
    """The checkpoint on a machine that does not have its data."""
    checkpoint = checkpoints.load(run / "best.pt")
    gone = {"path": str(tmp_path / "gone"), "digest": checkpoint.data["digest"]}
    checkpoints.save(replace(checkpoint, data=gone), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_the_loss_on_the_validation_set_is_that_of_the_last_validation(run: Path, look: ModelReport) -> None:
    best = checkpoints.load(run / "best.pt")
    assert look.text == "the validation set"
    assert look.tokens == look.text_tokens
    assert look.loss == pytest.approx(best.best_loss, rel=1e-4)
    assert look.bits_per_byte == pytest.approx(best.state.best_bits_per_byte, rel=1e-4)
    assert look.step == best.step


def test_its_parts_fit_each_other(look: ModelReport) -> None:
    assert sum(kind.tokens for kind in look.by_kind) == look.tokens
    assert (look.by_position.first[0], look.by_position.last[-1]) == (0, 15)
    assert "".join(look.passage.tokens) in TEXT
    assert len(look.passage.tokens) == len(look.passage.surprise) == len(look.passage.alternatives) == 16
    assert np.isfinite(look.passage.surprise).all()
    assert look.next_token.prompt == "".join(look.passage.tokens) == "".join(look.attention.tokens)
    assert look.attention.weights.shape == (2, 2, 16, 16)
    assert [layer.layer for layer in look.units] == [0, 1]
    assert look.vocabulary.basis == "training data"
    assert look.vocabulary.unused == 257 - len(set(TEXT)) - 1  # the end-of-text token ends the text
    assert {each.token for each in look.neighbours} <= set(TEXT)


def test_the_whole_output_is_json(look: ModelReport) -> None:
    record = json.loads(json.dumps(look.to_json(), allow_nan=False))
    assert set(record) == set(look.__dict__)
    assert [len(row) for row in record["attention"]["weights"][0][0]] == list(range(1, 17))
    for row in record["attention"]["weights"][1][1]:
        assert sum(row) == pytest.approx(1, abs=0.01)
    assert record["passage"]["surprise"] == pytest.approx(look.passage.surprise, rel=1e-3)
    assert record["by_kind"][0]["examples"]


def test_inspecting_twice_gives_the_same(run: Path, look: ModelReport) -> None:
    assert inspect_model(run).to_json() == look.to_json()


def test_a_given_text_is_read_from_its_start(alone: Path) -> None:
    found = inspect_model(alone, InspectionRequest("7 times 7 is 49.\n", "my.txt"))
    assert (found.text, found.tokens, found.text_tokens) == ("my.txt", 16, 16)
    assert "".join(found.passage.tokens) == "7 times 7 is 49.\n"
    # Nothing stood before the first token of a text that was one long document.
    assert np.isnan(found.passage.surprise).tolist() == [True] + [False] * 16
    assert found.to_json()["passage"]["surprise"][0] is None
    assert found.vocabulary.basis == "unknown"


def test_where_documents_began_with_a_token_a_given_text_does_too(alone: Path, tmp_path: Path) -> None:
    checkpoint = replace(checkpoints.load(alone), starts_documents=True)
    checkpoints.save(checkpoint, tmp_path / "documents.pt")
    found = inspect_model(tmp_path / "documents.pt", InspectionRequest("7 times 7", "my.txt"))
    assert found.tokens == 9
    assert "".join(found.passage.tokens) == "7 times 7"
    assert np.isfinite(found.passage.surprise).all()


def test_bits_per_byte_of_a_given_text_are_over_its_own_bytes(alone: Path) -> None:
    found = inspect_model(alone, InspectionRequest("日本語です", "my.txt"))
    assert found.bits_per_byte == pytest.approx(found.loss / np.log(2))


def test_the_data_of_the_run_is_counted_though_a_text_is_given(run: Path) -> None:
    assert inspect_model(run, InspectionRequest("7 times 7", "my.txt")).vocabulary.basis == "training data"


def test_prompt_and_words_are_the_requested_ones(run: Path) -> None:
    found = inspect_model(run, InspectionRequest(prompt="12 times", words=["t", "9"]))
    assert found.next_token.prompt == "12 times"
    assert found.attention.tokens == tuple("12 times")
    assert [each.token for each in found.neighbours] == ["t", "9"]


def test_an_empty_prompt_is_the_start_of_a_text(run: Path) -> None:
    found = inspect_model(run, InspectionRequest(prompt=""))
    assert found.attention.tokens == ("\n",)


def test_it_says_how_far_it_is_and_can_be_stopped(run: Path) -> None:
    seen: list[Event] = []
    inspect_model(run, emit=seen.append)
    stages = [event.stage for event in of(Progress, seen) if event.finished]
    assert stages == ["reading the text", "counting the training data", "inspecting the weights"]
    with pytest.raises(StoppedError):
        inspect_model(run, should_stop=lambda: True)


def refused(error: type[Exception], message: str, *arguments: Any) -> None:
    with pytest.raises(error, match=message) as raised:
        inspect_model(*arguments)
    assert getattr(raised.value, "hint", "")


def test_a_checkpoint_without_its_data_names_the_option(alone: Path) -> None:
    refused(DataError, "checkpoint's training data .*gone does not exist", alone)
    with pytest.raises(DataError) as raised:
        inspect_model(alone)
    assert "--data FILE" in raised.value.hint


def test_data_that_has_changed_or_is_damaged_is_not_taken_for_the_runs_own(run: Path, tmp_path: Path) -> None:
    checkpoint = checkpoints.load(run / "best.pt")
    other = replace(checkpoint, data={**checkpoint.data, "digest": "0"})
    checkpoints.save(other, tmp_path / "other.pt")
    refused(DataError, "is not what the checkpoint was trained on", tmp_path / "other.pt")
    shutil.copytree(checkpoint.data["path"], tmp_path / "tokens")
    (tmp_path / "tokens" / "val.bin").write_bytes(b"")
    damaged = replace(checkpoint, data={**checkpoint.data, "path": str(tmp_path / "tokens")})
    checkpoints.save(damaged, tmp_path / "damaged.pt")
    refused(DataError, "cannot read the checkpoint's training data: .*val.bin", tmp_path / "damaged.pt")
    checkpoints.save(replace(checkpoint, data={"path": "", "digest": ""}), tmp_path / "bare.pt")
    refused(DataError, "does not say what it was trained on", tmp_path / "bare.pt")


@pytest.mark.parametrize(("text", "tokens"), [("", "0 tokens"), ("x", "1 token$")])
def test_a_text_too_short_for_a_prediction_is_refused(alone: Path, text: str, tokens: str) -> None:
    refused(DataError, f"my.txt is too short: it has {tokens}", alone, InspectionRequest(text, "my.txt"))


def test_a_word_of_several_tokens_is_refused_before_anything_is_read(run: Path) -> None:
    refused(SettingsError, "'times' is not a single token", run, InspectionRequest(words=["times"]))
