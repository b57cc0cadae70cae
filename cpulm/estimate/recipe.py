"""The settings that suit a size of model, an amount of text and a time; loads no torch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from cpulm.model.counts import count
from cpulm.settings import DataSettings, Settings

SHAPES = (
    (2, 64, 1),
    (2, 128, 2),
    (3, 128, 2),
    (4, 192, 3),
    (6, 256, 4),
    (6, 320, 5),
    (6, 384, 6),
    (8, 448, 7),
    (8, 512, 8),
    (10, 640, 10),
)
"""Layers, width and heads. All heads are 64 wide, and deeper models are wider, as in the presets."""


class Regularization(NamedTuple):
    """Dropout, weight decay, the probability that a token is split (``train.bpe_dropout``), and the part that
    AdamW's rate is of that for a text that is seen once."""

    dropout: float
    weight_decay: float
    bpe_dropout: float
    lr_part: float


REGULARIZATION = (
    (3.0, Regularization(0.0, 0.1, 0.0, 1.0)),
    (8.0, Regularization(0.0, 0.1, 0.0, 0.3)),
    (12.0, Regularization(0.0, 0.5, 0.0, 0.3)),
    (20.0, Regularization(0.0, 0.5, 0.0, 0.1)),
    (40.0, Regularization(0.0, 0.5, 0.1, 0.1)),
    (60.0, Regularization(0.0, 0.5, 0.2, 0.1)),
    (100.0, Regularization(0.0, 0.5, 0.3, 0.1)),
    (math.inf, Regularization(0.1, 0.5, 0.3, 0.1)),
)
MOST_REPETITION, MOST_SPLIT_REPETITION = 30.0, 46.0
"""What suits up to a repetition, by the runs in benchmarks/EXPERIMENTS.md: the number of passes times the
square root of the parameters for each token of the text, because a small model memorizes a text later. Runs
with more than ``MOST_REPETITION``, or ``MOST_SPLIT_REPETITION`` where tokens were split, had their best model
before the end."""
AVERAGE_FRACTION = 0.2

_VOCABULARY_OF_TEXT = ((30e3, 512), (300e3, 1024), (3e6, 2048), (20e6, 4096), (math.inf, 8192))
_VOCABULARY_OF_WIDTH = ((64, 1024), (128, 2048), (256, 4096), (math.inf, 8192))
_TOKEN_BYTES = {512: 2.1, 1024: 2.6, 2048: 3.0, 4096: 3.4, 8192: 3.8}
"""By the size of the vocabulary, before a text is tokenized: between English, plays and Python."""
_BATCHES = ((0.3e6, 1024), (4e6, 2048), (30e6, 4096), (math.inf, 8192))
"""Up to so many trained tokens: tokens in an update."""
_BLOCKS = ((5e6, 128), (60e6, 256), (math.inf, 512))
"""Up to so many trained tokens: the context."""
_HIGHEST_LR, _WIDTH_TIMES_LR = 0.01, 3.0
"""AdamW's rate falls as the width grows, as in the presets; Muon's is the same for every width. AdamW trains
the embedding: at a high rate it memorizes a repeated text."""
_VALIDATIONS = (12, 40)
"""The fewest and the most validations of a run; longer runs have more."""
_FEWEST_VALIDATIONS = 4
"""Of a run that is so short that more would take much of its time."""
_VALIDATED_PART, _FORWARD_COST, _FEWEST_VALIDATED_TOKENS = 0.06, 1.0, 8192.0
"""They take this part of the training's time, at so many times its cost for each token: a validation in fp32
costs as much as training in int8. But a validation has at least so many tokens."""
_COMPUTED = 1.25
"""How often a validated token is computed: the trained and the averaged weights are compared on a part."""
_VAL_PART = 0.05
"""Of a validation split that is smaller than what the time allows, all is validated."""
_WARMUP_STEPS = 20
_SHORT_STEPS = 400
"""A run of fewer updates needs a lower momentum."""


def _upto(table: tuple[tuple[float, int], ...], value: float) -> int:
    return next(result for most, result in table if value <= most)


def bytes_per_token(data: DataSettings) -> float:
    """The bytes that a token of the tokenizer is expected to stand for."""
    if data.tokenizer in ("byte", "char"):
        return 1.0
    size = data.vocab_size or max(_TOKEN_BYTES)
    return _TOKEN_BYTES[min(_TOKEN_BYTES, key=lambda known: abs(math.log(known / size)))]


def shape_settings(shape: tuple[int, int, int]) -> dict[str, Any]:
    """The settings of a shape, by dotted key."""
    layers, width, heads = shape
    return {"model.n_layer": layers, "model.n_embd": width, "model.n_head": heads}


def splits_tokens(settings: Settings) -> bool:
    """Whether ``train.bpe_dropout`` can have an effect; a ``tokenizer.json`` may have no merges."""
    tokenizer = settings.data.tokenizer
    is_split = tokenizer not in ("byte", "char", "word") and not tokenizer.endswith(".txt")
    return is_split and not settings.train.records


def regularization(passes: float, params: float, text_tokens: float, *, splits: bool) -> Regularization:
    """What suits a model of ``params`` parameters without embeddings and so many passes.

    Args:
        splits: whether tokens can be split.
    """
    repetition = passes * math.sqrt(params / text_tokens)
    found = next(suitable for most, suitable in REGULARIZATION if repetition <= most)
    return found if splits else found._replace(bpe_dropout=0.0)


def learning_rate(width: int, suitable: Regularization) -> float:
    """AdamW's peak rate for a model, beside Muon for the matrices."""
    return float(f"{suitable.lr_part * min(_HIGHEST_LR, _WIDTH_TIMES_LR / width):.2g}")


def most_passes(params: float, text_tokens: float, *, splits: bool) -> float:
    """The passes over a text that a model of ``params`` parameters without embeddings learns from.

    Args:
        splits: whether tokens are split.
    """
    return (MOST_SPLIT_REPETITION if splits else MOST_REPETITION) / math.sqrt(params / text_tokens)


def vocabulary(width: int, text_bytes: float) -> int:
    """Entries of a vocabulary for a model and a text: a large one is learned from much text only."""
    return min(_upto(_VOCABULARY_OF_WIDTH, width), _upto(_VOCABULARY_OF_TEXT, text_bytes))


def recipe(settings: Settings, text_bytes: float, tokens: float, passes: float) -> dict[str, Any]:
    """The settings of a run on ``tokens`` tokens, in so many passes over the text, by dotted key.

    Args:
        settings: of which the width, the depth and the kind of tokens count.
        text_bytes: of training text.
    """
    model = settings.model
    block = _upto(_BLOCKS, tokens) if model.n_embd > 64 else 128
    rows = max(1, _upto(_BATCHES, tokens) // block)
    steps = max(1.0, tokens / (rows * block))
    splits, params = splits_tokens(settings), count(model, 0).non_embedding
    suitable = regularization(passes, params, tokens / passes, splits=splits)
    affordable = _VALIDATED_PART * tokens / (_COMPUTED * _FORWARD_COST)  # tokens in all validations
    split = _VAL_PART * text_bytes / _TOKEN_BYTES[2048]
    most = min(_VALIDATIONS[1], max(_FEWEST_VALIDATIONS, affordable / _FEWEST_VALIDATED_TOKENS))
    wanted = max(_VALIDATIONS[0], math.sqrt(steps) / 2)
    if _VALIDATIONS[0] <= affordable / split < wanted:  # fewer, and then each of the whole split
        wanted = affordable / split
    validations = min(wanted, most)
    val_tokens = max(affordable / validations, _FEWEST_VALIDATED_TOKENS)
    whole = val_tokens >= split
    return {
        "data.vocab_size": vocabulary(model.n_embd, text_bytes),
        "model.block_size": block,
        "model.dropout": suitable.dropout,
        "train.micro_batch_size": rows,
        "train.lr": learning_rate(model.n_embd, suitable),
        "train.muon_lr": 0.01,
        "train.momentum": 0.95 if steps >= _SHORT_STEPS else 0.9,
        "train.schedule": "wsd",
        "train.warmup_steps": _WARMUP_STEPS,
        "train.decay_fraction": 0.6,
        "train.weight_decay": suitable.weight_decay,
        "train.bpe_dropout": suitable.bpe_dropout,
        "train.average_fraction": AVERAGE_FRACTION,
        "eval.every": max(1, round(steps / validations)),
        "eval.batches": None if whole else max(1, round(val_tokens / (rows * block))),
    }
