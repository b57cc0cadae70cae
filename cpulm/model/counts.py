"""Parameters, arithmetic and memory of a model, computed from its settings alone.

Nothing here imports torch, so that a list of presets shows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpulm.settings import ModelSettings

FLOAT_BYTES = 4
LOGITS_IN_CHUNK = 1 << 21
"""Logits that the loss holds at once where it works in chunks."""

PROCESS_BYTES = 310 << 20
"""What a process holds once torch has multiplied, differentiated and updated (Linux, torch 2.13)."""

ALLOCATOR_FACTOR = 1.55
"""Resident bytes per byte in use of activations: they come and go in changing sizes and leave holes in the
C library's heap. Fitted on four shapes with glibc, where it lay between 1.4 and 1.75, and checked on no
others; ``benchmarks/memory.py`` measures it. With activation checkpointing it was not measured."""


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


def activation_bytes(settings: ModelSettings, vocab_size: int, micro_batch_size: int) -> int:
    """Estimated peak bytes, in float32, of what the forward pass keeps for the backward pass.

    Counted part by part as the eager CPU path keeps it, times :data:`ALLOCATOR_FACTOR`.
    """
    s, d = settings, settings.n_embd
    tokens = micro_batch_size * s.block_size
    block = _floats_per_token(s)
    kept = s.n_layer * d + block if s.activation_checkpointing else s.n_layer * block
    # The first step back holds the gradients of the MLP's inside, of its input and of the stream.
    on_the_way = 2 * s.inner_width + 2 * d
    logits = tokens * vocab_size
    if logits > LOGITS_IN_CHUNK:
        head = 2 * max(LOGITS_IN_CHUNK, 64 * vocab_size) + 2 * vocab_size * d + 2 * tokens * d
    else:
        head = 3 * logits
    floats = tokens * (kept + 3 * d + on_the_way) + head
    return round(ALLOCATOR_FACTOR * FLOAT_BYTES * floats)


def training_bytes(
    settings: ModelSettings,
    vocab_size: int,
    micro_batch_size: int,
    optimizer: Literal["muon", "adamw"] = "muon",
) -> int:
    """Estimated peak bytes of weights, gradients, optimizer state and activations in float32.

    A process that has loaded torch needs about :data:`PROCESS_BYTES` besides.
    """
    counts = count(settings, vocab_size)
    moments = 2 * counts.total
    if optimizer == "muon":  # one average for the blocks' matrices, two for the rest
        moments -= counts.by_part["attention"] + counts.by_part["mlp"]
    state = (2 * counts.total + moments) * FLOAT_BYTES
    return state + activation_bytes(settings, vocab_size, micro_batch_size)


def _floats_per_token(s: ModelSettings) -> int:
    """Numbers that one block keeps per token: the inputs of its products, norms and activation."""
    q, kv = s.n_head * s.head_width, s.kv_heads * s.head_width
    streams = 4 * s.n_embd  # both norms keep their input, both first products their output
    attention = q + 2 * kv + q  # the projection and attention's result
    if s.position == "rope" or s.qk_norm:
        attention += q + kv  # queries and keys once more, turned
    mlp = {"swiglu": 3, "gelu": 2, "gelu_erf": 2, "relu": 1, "relu2": 2}[s.mlp] * s.inner_width
    if s.dropout:  # masks of both branches; attention keeps its probabilities, drawn and undrawn
        attention += 4 * s.n_embd + 3 * s.n_head * s.block_size
    return streams + attention + mlp
