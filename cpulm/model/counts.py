"""Parameters and arithmetic of a model, computed from its settings alone.

Nothing here imports torch, so that the list of presets appears at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpulm.layer_shapes import LinearShape
from cpulm.settings import ModelSettings
from cpulm.settings.lora_settings import LoraSettings

LOGITS_IN_CHUNK = 1 << 21
"""Logits that the loss holds at once if it works in chunks."""

INT8_LOGITS_IN_CHUNK = 1 << 22
"""Float32 logits in one chunk of the int8 head: 16 MiB. Twice as many are as fast."""

INT8_PROBABILITIES_AT_ONCE = 1 << 25
"""Bytes of int8 probabilities that wait for the product with the rows: 32 MiB. If they need more, several
products add up to the head's gradient."""

FEWEST_ROWS_IN_CHUNK = 64
"""Rows of a chunk of the head, however large the vocabulary is."""


@dataclass(frozen=True)
class Counts:
    """How many parameters a model has.

    Attributes:
        total: all of them; tied embeddings are counted once.
        non_embedding: without token embedding, learned positions and an untied head.
        by_part: ``embedding``, ``position``, ``attention``, ``mlp``, ``norm``, ``head``; their sum is
            ``total``.
    """

    total: int
    non_embedding: int
    by_part: dict[str, int]


def count(settings: ModelSettings, vocab_size: int) -> Counts:
    """Parameters of ``Transformer(settings, vocab_size)``."""
    s, d, layers = settings, settings.n_embd, settings.linear_layers
    attention = _layer(layers.qkv, s.bias) + _layer(layers.out, s.bias) + 2 * s.head_width * s.qk_norm
    mlp = _layer(layers.up, s.bias) + _layer(layers.down, s.bias)
    norm = 2 * d if s.norm == "layernorm" and s.bias else d
    by_part = {
        "embedding": vocab_size * d,
        "position": s.block_size * d if s.position == "learned" else 0,
        "attention": s.n_layer * attention,
        "mlp": s.n_layer * mlp,
        "norm": (2 * s.n_layer + 1) * norm,
        "head": 0 if s.tie_embeddings else vocab_size * d,
    }
    total = sum(by_part.values())
    outside = by_part["embedding"] + by_part["position"] + by_part["head"]
    return Counts(total=total, non_embedding=total - outside, by_part=by_part)


def count_adapters(settings: ModelSettings, lora: LoraSettings) -> int:
    """Parameters of the adapters that :func:`cpulm.model.lora.adapt` adds."""
    chosen = [
        layer.inputs + part.rows
        for layer in settings.linear_layers
        for part in layer.parts
        if lora.adapts(part.name)
    ]
    return settings.n_layer * lora.rank * sum(chosen)


def _layer(shape: LinearShape, bias: bool) -> int:
    return shape.inputs * shape.outputs + shape.outputs * bias


def flops_per_token(settings: ModelSettings, vocab_size: int, lora: LoraSettings | None = None) -> float:
    """Floating-point operations to train on one token, forward and backward.

    ``6 (N + V n_embd) + 6 n_layer n_head head_dim T``: two per weight and token in the forward pass and
    four in the backward pass, for the N non-embedding parameters and the head; and for attention's two
    products half of PaLM's ``12 L H Q T`` (https://arxiv.org/abs/2204.02311, appendix B), because a causal
    token sees half of the sequence on average. ``T`` is ``block_size``. Frozen weights have no gradients of
    their own: four per weight.

    Args:
        lora: the adapters that are trained instead of the weights, if it has a rank.
    """
    s = settings
    weights = count(settings, vocab_size).non_embedding + vocab_size * s.n_embd
    of_weights = 6.0 * weights
    if lora is not None and lora.rank:
        of_weights = 4.0 * weights + 6.0 * count_adapters(settings, lora)
    return of_weights + 6.0 * s.n_layer * s.n_head * s.head_width * s.block_size
