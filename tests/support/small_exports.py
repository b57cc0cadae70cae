"""Small trained models of every kind that can be exported, each exported once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import cpulm
from small_models import GPT2, a_model

from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.load_model import load_model
from cpulm.checkpoints.train_state import TrainState
from cpulm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_bpe, train_word
from cpulm.generation.generate import Generation
from cpulm.generation.sampling import Sampling
from cpulm.model.transformer import Transformer
from cpulm.settings import Settings

TEXT = "".join(Path(file).read_text(encoding="utf-8") for file in (__file__, checkpoints.__file__))
BLOCK_SIZE = 128
_SINUSOIDAL = {**GPT2, "position": "sinusoidal", "mlp": "gelu_erf", "bias": False}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-bpe": ("bpe", {"n_kv_head": 1, "tie_embeddings": True}),
    "qwen3-byte": ("byte", {"head_dim": 24, "rope_theta": 1e5}),
    "qwen3-char": ("char", {}),
    "qwen3-word": ("word", {"tie_embeddings": True}),
    "llama-bpe": ("bpe", {"qk_norm": False, "bias": True, "n_head": 4, "n_kv_head": 2}),
    "gpt2-bpe": ("bpe", {**GPT2, "tie_embeddings": True}),
    "gpt2-char": ("char", _SINUSOIDAL),
}
"""The models: tokenizer and shape. Without ``tie_embeddings`` the head is a matrix of its own."""


def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "bpe":
        return train_bpe([TEXT], 500)
    if kind == "word":
        return train_word([TEXT], 200)
    return byte_tokenizer() if kind == "byte" else char_tokenizer(TEXT)


@dataclass(frozen=True)
class SmallTrained:
    """A trained model as a checkpoint in a run's folder."""

    run: Path
    tokenizer: Tokenizer

    @cached_property
    def model(self) -> Transformer:
        return load_model(self.run, warn=pytest.fail)[0]

    def prompt(self) -> list[int]:
        return self.tokenizer.encode("def load(path: Path) -> Checkpoint:\n    return")

    @torch.inference_mode()
    def greedy(self, count: int) -> list[int]:
        """The likeliest tokens behind the prompt."""
        made = Generation(self.model, self.prompt(), max_new_tokens=count, sampling=Sampling(temperature=0.0))
        return [int(tokens[0] or 0) for tokens in made]

    def exported(self, to: str, *more: str) -> Path:
        """The export of this model, made once."""
        out = self.run / "-".join(("exported", to, *(word.strip("-") for word in more)))
        if not out.exists():
            done = cpulm(self.run, "export", str(self.run), "--to", to, "--out", str(out), *more)
            assert done.returncode == 0, done.stderr
        return out


def _train(model: Transformer, tokenizer: Tokenizer, steps: int) -> float:
    """Some updates on :data:`TEXT`; gives the last loss."""
    ids = torch.tensor(tokenizer.encode(TEXT))
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    loss = torch.zeros(())
    for _ in range(steps):
        starts = torch.randint(len(ids) - 65, (8,), generator=generator).tolist()
        windows = torch.stack([ids[start : start + 65] for start in starts])
        optimizer.zero_grad()
        loss = model(windows[:, :-1], windows[:, 1:])
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    return loss.item()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SmallTrained]:
    """Gives the model of one of the :data:`KINDS`."""
    made: dict[str, SmallTrained] = {}

    @torch.inference_mode(False)  # for tests that are in that mode
    def give(name: str) -> SmallTrained:
        if name not in made:
            kind, shape = KINDS[name]
            tokenizer = tokenizer_of(kind)
            shape = {"n_embd": 64, "n_head": 2, "block_size": BLOCK_SIZE, **shape}
            model = a_model(tokenizer.vocab_size, **shape)
            loss = _train(model, tokenizer, 30)
            run = tmp_path_factory.mktemp("runs") / name
            run.mkdir()
            data = {"source": ["/home/somebody/private/notes.txt"], "tokenizer": kind}
            settings = Settings.model_validate({"model": model.settings.model_dump(), "data": data})
            state = TrainState(step=30, tokens=30 * 512, elapsed_seconds=2.0, best_loss=loss, best_step=30)
            weights = {name: weight.clone() for name, weight in model.state_dict().items()}
            saved = Checkpoint(
                settings, tokenizer.to_json(), tokenizer.vocab_size, True, weights, state=state
            )
            checkpoints.save(saved, run / "best.pt")
            made[name] = SmallTrained(run, tokenizer)
        return made[name]

    return give
