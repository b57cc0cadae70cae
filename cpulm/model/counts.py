"""Parameters and arithmetic of a model, computed from its settings alone.

Nothing here imports torch, so that a list of presets shows at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpulm.settings import ModelSettings

LOGITS_IN_CHUNK = 1 << 21
"""Logits that the loss holds at once where it works in chunks."""


@dataclass(frozen=True)
class Counts:
    """How many parameters a model has.

    Attributes:
        total: all of them; tied embeddings are counted once.
        non_embedding: without token embedding, learned positions and an untied head.
        by_part: ``embedding``, ``position``, ``attention``, ``mlp``, ``norm``, ``head``; they add up to
            ``total``.
    """

    total: int
    non_embedding: int
    by_part: dict[str, int]


def count(settings: ModelSettings, vocab_size: int) -> Counts:
    """Parameters of ``Transformer(settings, vocab_size)``."""
    s, d = settings, settings.n_embd
    q, kv, inner = s.n_head * s.head_width, s.kv_heads * s.head_width, s.inner_width
    up = 2 * inner if s.mlp == "swiglu" else inner
    attention = d * (q + 2 * kv) + q * d + (2 * s.head_width if s.qk_norm else 0)
    mlp = d * up + inner * d
    if s.bias:
        attention += q + 2 * kv + d
        mlp += up + d
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


def flops_per_token(settings: ModelSettings, vocab_size: int) -> float:
    """Floating-point operations to train on one token, forward and backward.

    ``6 (N + V n_embd) + 6 n_layer n_head head_dim T``: two per weight and token in the forward pass and
    four in the backward pass, for the N non-embedding parameters and the head; and for attention's two
    products half of PaLM's ``12 L H Q T`` (https://arxiv.org/abs/2204.02311, appendix B), because a causal
    token sees half of the sequence on average. ``T`` is ``block_size``.
    """
    s = settings
    weights = count(settings, vocab_size).non_embedding + vocab_size * s.n_embd
    return 6.0 * weights + 6.0 * s.n_layer * s.n_head * s.head_width * s.block_size
