"""A model is loaded from its checkpoint alone; a damaged checkpoint is skipped with a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cpulm.checkpoints.checkpoint import Checkpoint, save
from cpulm.checkpoints.load_model import load_model
from cpulm.data.tokenizer import byte_tokenizer
from cpulm.errors import DataError
from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings, Settings


def a_model(**values: Any) -> Transformer:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, **values}
    model = Transformer(ModelSettings.model_validate(shape), 257)
    model.init_weights(0)
    return model.eval()


def save_checkpoint(model: Transformer, path: Path) -> None:
    save(
        Checkpoint(
            settings=Settings(model=model.settings),
            tokenizer_json=byte_tokenizer().to_json(),
            vocab_size=model.vocab_size,
            starts_documents=True,
            model_state=model.state_dict(),
            optimizer_states=[{"state": {0: torch.ones(3)}}],
        ),
        path,
    )


def test_load_model_brings_back_the_model_ready_to_generate(tmp_path: Path) -> None:
    model = a_model(dropout=0.3)
    save_checkpoint(model, tmp_path / "latest.pt")
    loaded, tokenizer, checkpoint = load_model(tmp_path / "latest.pt", warn=pytest.fail)
    idx = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(idx), model(idx))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert tokenizer.encode("hi") == [104, 105]
    assert checkpoint.starts_documents
    assert checkpoint.optimizer_states == []


def test_load_model_takes_the_best_of_a_run_else_the_newest(tmp_path: Path) -> None:
    latest, best = a_model(), a_model(n_layer=1)
    save_checkpoint(latest, tmp_path / "latest.pt")
    assert load_model(tmp_path, warn=pytest.fail)[0].settings.n_layer == 2
    save_checkpoint(best, tmp_path / "best.pt")
    assert load_model(tmp_path, warn=pytest.fail)[0].settings.n_layer == 1
    (tmp_path / "best.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:-1])
    said: list[str] = []
    assert load_model(tmp_path, warn=said.append)[0].settings.n_layer == 2
    assert "best.pt" in said[0]
    assert "latest.pt" in said[0]


def test_load_model_refuses_a_file_that_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("{}")
    with pytest.raises(DataError, match="no checkpoint yet"):
        load_model(tmp_path, warn=pytest.fail)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(DataError, match=r"text\.pt is not a cpulm checkpoint"):
        load_model(tmp_path / "text.pt", warn=pytest.fail)
    with pytest.raises(DataError, match="does not exist"):
        load_model(tmp_path / "absent", warn=pytest.fail)
