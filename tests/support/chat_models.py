"""Models that answer: a small one of known answers, as a checkpoint."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from cpulm.checkpoints.checkpoint import Checkpoint, save
from cpulm.data.marked_text import special_id
from cpulm.data.records.chat import CHAT_TOKENS
from cpulm.data.tokenizer import Tokenizer, byte_tokenizer
from cpulm.model.transformer import Transformer
from cpulm.settings import DataSettings, ModelSettings, Settings, TrainSettings

ANSWER = "abcde"


def chat_tokenizer() -> Tokenizer:
    """Bytes, and the special tokens of conversations."""
    return byte_tokenizer().with_special_tokens(CHAT_TOKENS)


def answering_checkpoint(
    path: Path, *, block_size: int = 64, answer: str = ANSWER, endless: bool = False
) -> Path:
    """A model that answers everything alike, and ends its answers unless ``endless``; at temperature 0.

    The blocks stay zero; the embedding is one-hot, and the head likes the token after the one it sees.
    """
    tokenizer = chat_tokenizer()
    size = tokenizer.vocab_size
    settings = ModelSettings(
        n_layer=1, n_head=1, n_embd=size + size % 2, block_size=block_size, tie_embeddings=False
    )
    model = Transformer(settings, size)
    model.init_weights(0)
    begins, ends = (special_id(tokenizer, name) for name in CHAT_TOKENS[-2:])
    written = answer.encode()
    chain = [begins, *written, *([written[0]] if endless else [ends, tokenizer.eot_id])]
    with torch.no_grad():
        for name, parameter in model.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                parameter.zero_()
        model.wte.weight.copy_(torch.eye(size, settings.n_embd))
        assert model.lm_head is not None
        model.lm_head.weight.zero_()
        for token, following in pairwise(chain):
            model.lm_head.weight[following, token] = 1
    checkpoint = Checkpoint(
        settings=Settings(
            model=settings, data=DataSettings(chat=True), train=TrainSettings(records=True, steps=1)
        ),
        tokenizer_json=tokenizer.to_json(),
        vocab_size=size,
        starts_documents=True,
        model_state=model.state_dict(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(checkpoint, path)
    return path
