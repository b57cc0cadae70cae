"""A run with ``train.init_from``: begins with a trained model's weights, tokenizer and settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hf_models import VOCAB, hf_model, saved
from small_runs import of, resume, same, settings_for, train, weights

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.load_model import load_model
from cpulm.data.records.chat import CHAT_TOKENS
from cpulm.errors import DataError, SettingsError
from cpulm.events import Notice, Validated
from cpulm.export.export_model import ExportRequest, export_model
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.training.initial import initial_settings, read_initial

TEXT = "the quick brown fox jumps over the lazy dog. " * 100
OTHER = "pack my box with five dozen liquor jugs. " * 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    (path / "text.txt").write_text(TEXT)
    (path / "other.txt").write_text(OTHER)
    return path


@pytest.fixture(scope="module")
def first(folder: Path) -> Path:
    """A run to begin with."""
    more = ("train.steps=80", "eval.every=80", "data.tokenizer=bpe", "data.vocab_size=280")
    train(settings_for(folder / "text.txt", *more), folder / "first")
    return folder / "first"


def begun_with(model: Path, source: Path, *more: str) -> Settings:
    """The settings of a run that begins with ``model``, as ``cpulm train`` resolves them."""
    few = ("train.micro_batch_size=4", "train.warmup_steps=2", "train.steps=12", "eval.every=6")
    given = [*few, "runtime.threads=1", "runtime.compile=off", "sample.max_new_tokens=4"]
    given += [f"train.init_from={model}", f"data.source={source}", *more]
    initial = initial_settings(read_initial(str(model), lambda _: None))
    return resolve("tiny", environ=os.environ, assignments=given, initial=initial)


def test_it_begins_where_the_model_was_and_learns_the_other_text(
    folder: Path, first: Path, tmp_path: Path
) -> None:
    settings = begun_with(first, folder / "text.txt", "train.lr=1e-9", "train.muon_lr=1e-9", "train.steps=1")
    seen, _ = train(settings, tmp_path / "still")
    before = load_model(first, warn=pytest.fail)[2].state.best_loss
    assert of(Validated, seen)[-1].loss == pytest.approx(before, abs=2e-3)
    assert any(notice.message.startswith("begins with the") for notice in of(Notice, seen))
    seen, _ = train(begun_with(first, folder / "other.txt", "train.steps=40"), tmp_path / "moved")
    _, tokenizer, checkpoint = load_model(tmp_path / "moved", warn=pytest.fail)
    assert tokenizer.to_json() == load_model(first, warn=pytest.fail)[1].to_json()
    assert checkpoint.settings.model == settings.model
    losses = [event.loss for event in of(Validated, seen)]
    assert losses[-1] < losses[0]


def test_a_resumed_run_needs_the_model_no_more(folder: Path, first: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    model.write_bytes((first / "best.pt").read_bytes())
    settings = begun_with(model, folder / "other.txt")
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "part", stop_at=5)
    model.unlink()
    resume(tmp_path / "part")
    assert same(tmp_path / "whole" / "latest.pt", tmp_path / "part" / "latest.pt")


def test_a_run_takes_the_settings_of_the_model_and_lower_rates(folder: Path, first: Path) -> None:
    trained = load_model(first, warn=pytest.fail)[2].settings
    settings = begun_with(first, folder / "other.txt", "model.block_size=32", "model.dropout=0.2")
    assert settings.model.n_embd == trained.model.n_embd == 16
    assert (settings.model.block_size, settings.model.dropout) == (32, 0.2)
    assert settings.train.lr == pytest.approx(trained.train.lr / 3, rel=0.05)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("model.n_embd=32", r"model\.n_embd = 32 does not fit the model of train\.init_from: it has 16"),
        ("model.norm_eps=1e-5", r"model\.norm_eps = 1e-05 does not fit .* it has 1e-06"),
        ("data.tokenizer=byte", r"data\.tokenizer = 'byte' does not fit .* it has 'bpe'"),
        ("train.generations=2", "begins with trained weights, and every generation with new ones"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    more: str, message: str, folder: Path, first: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        train(begun_with(first, folder / "other.txt", more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_learned_positions_do_not_grow(folder: Path, tmp_path: Path) -> None:
    model = saved(hf_model("gpt2"), tmp_path / "gpt2")
    train(begun_with(model, folder / "text.txt", "model.block_size=16", "train.steps=1"), tmp_path / "run")
    assert weights(tmp_path / "run" / "latest.pt")["wpe.weight"].shape == (16, 48)
    with pytest.raises(SettingsError, match=r"model\.block_size = 200 does not fit .* it has 128"):
        train(begun_with(model, folder / "text.txt", "model.block_size=200"), tmp_path / "longer")


@pytest.mark.parametrize("tied", [True, False])
def test_conversations_add_their_tokens_at_the_end(folder: Path, tmp_path: Path, tied: bool) -> None:
    model = f"model.tie_embeddings={str(tied).lower()}"
    more = ("train.steps=10", "data.tokenizer=bpe", "data.vocab_size=280", model)
    train(settings_for(folder / "text.txt", *more), tmp_path / "plain")
    talk = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps over the dog"}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(f"{json.dumps({'messages': talk})}\n" * 40)
    still = (
        "train.lr=1e-20",
        "train.muon_lr=1e-20",
        "train.weight_decay=0",
        "train.steps=1",
        "data.chat=true",
    )
    seen, _ = train(begun_with(tmp_path / "plain", chats, *still, "data.val_fraction=0.2"), tmp_path / "run")
    said = [notice.message for notice in of(Notice, seen)]
    names = ", ".join(CHAT_TOKENS)
    assert any(message.endswith(f"; new in its vocabulary: {names}") for message in said)
    assert not any("a vocabulary of" in message for message in said)
    before, after = weights(tmp_path / "plain" / "best.pt"), weights(tmp_path / "run" / "latest.pt")
    assert ("lm_head.weight" in after) is not tied
    for name in {"wte.weight", "lm_head.weight"} & after.keys():
        old = before[name]
        torch.testing.assert_close(after[name], torch.cat([old, old.mean(0, keepdim=True).expand(4, -1)]))
    tokenizer = load_model(tmp_path / "run", warn=pytest.fail)[1]
    ids = [tokenizer.inner.token_to_id(name) for name in CHAT_TOKENS]
    assert ids == list(range(tokenizer.vocab_size - 4, tokenizer.vocab_size))
    resume(tmp_path / "run", steps=2)
    assert checkpoints.load(tmp_path / "run" / "latest.pt").step == 2


def test_tokens_of_another_tokenizer(folder: Path, first: Path, tmp_path: Path) -> None:
    from cpulm.data.prepare import prepare

    data = settings_for(folder / "text.txt").data
    prepare(data, emit=lambda _: None, should_stop=lambda: False, out=tmp_path / "tokens")
    with pytest.raises(DataError, match="are of another tokenizer than that of"):
        train(begun_with(first, tmp_path / "tokens"), tmp_path / "run")


@torch.inference_mode()
def logits(path: Path, text: str) -> torch.Tensor:
    model, tokenizer, _ = load_model(path, warn=lambda _: None)
    found: torch.Tensor = model(torch.tensor([tokenizer.encode(text)[:16]]))
    return found


def test_a_folder_of_transformers_is_trained_and_exported_again(folder: Path, tmp_path: Path) -> None:
    model = saved(hf_model("qwen3"), tmp_path / "qwen3")
    settings = begun_with(
        model, folder / "text.txt", "model.block_size=16", "train.lr=1e-20", "train.steps=1"
    )
    assert (settings.train.optimizer, settings.data.tokenizer) == ("adamw", str(model / "tokenizer.json"))
    with torch.inference_mode(False):
        train(settings, tmp_path / "run")
    assert load_model(tmp_path / "run", warn=pytest.fail)[0].vocab_size == VOCAB
    torch.testing.assert_close(logits(tmp_path / "run", TEXT), logits(model, TEXT), atol=1e-5, rtol=0)
    for to in ("hf", "gguf"):
        exported = export_model(
            ExportRequest(tmp_path / "run", to, tmp_path / f"again.{to}", "f32"), pytest.fail
        )
        assert torch.equal(logits(exported.path, TEXT), logits(tmp_path / "run", TEXT))
