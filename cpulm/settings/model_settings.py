"""The settings of the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cpulm.layer_shapes import ACTIVATIONS, Activation, BlockLayers, LinearShape, Part
from cpulm.settings.setting_types import WIDEST, Section

_DEEPEST = 10_000
"""The most layers: far beyond what a machine holds."""


class ModelSettings(Section):
    """The shape and the parts of the transformer. The defaults are the Qwen3 block."""

    n_layer: int = Field(6, ge=1, le=_DEEPEST)
    """Number of transformer blocks."""
    n_head: int = Field(6, ge=1, le=WIDEST)
    """Number of query heads."""
    n_kv_head: int | None = Field(None, ge=1, le=WIDEST)
    """Number of key and value heads (grouped-query attention); unset: `n_head`."""
    n_embd: int = Field(384, ge=1, le=WIDEST)
    """Width of the residual stream."""
    head_dim: int | None = Field(None, ge=1, le=WIDEST)
    """Width of one head; unset: `n_embd / n_head`."""
    n_inner: int | None = Field(None, ge=1, le=WIDEST)
    """Width of the MLP's hidden layer; unset: 8/3 of `n_embd` (to a multiple of 32) for `swiglu`, else 4
    times."""
    block_size: int = Field(256, ge=2, le=WIDEST)
    """Tokens in one sequence: the context."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalization before attention, MLP and head."""
    norm_eps: float = Field(1e-6, gt=0, le=1)
    """Added to the variance inside every norm."""
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    """How positions are encoded."""
    rope_theta: float = Field(10_000.0, gt=0, le=1e12)
    """Base of the rotary frequencies."""
    mlp: Activation = "swiglu"
    """The MLP's activation: `swiglu`, `gelu` (GPT-2's tanh form), `gelu_erf` (the exact one, three times
    faster on a CPU), `relu` or `relu2` (relu squared). llama.cpp loads no block with the last two,
    transformers only the GPT-2 block."""
    qk_norm: bool = True
    """RMSNorm over each head's queries and keys, as in Qwen3."""
    bias: bool = False
    """Biases in linear layers and in layer norms."""
    tie_embeddings: bool = True
    """Use the embedding matrix as the output head too."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on embeddings, attention and residual branches."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _shapes_fit(self) -> ModelSettings:
        if self.head_dim is None and self.n_embd % self.n_head:
            low = self.n_embd // self.n_head * self.n_head
            fits = " and ".join(str(width) for width in (low, low + self.n_head) if width)
            raise ValueError(f"n_embd ({self.n_embd}) is not divisible by n_head ({self.n_head}): try {fits}")
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head ({self.n_head}) is not divisible by n_kv_head ({self.n_kv_head})")
        if self.position == "rope" and self.head_width % 2:
            raise ValueError(f"rope needs an even head width, not {self.head_width}")
        if self.position == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"sinusoidal positions need an even n_embd, not {self.n_embd}")
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_width(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def inner_width(self) -> int:
        if self.n_inner is not None:
            return self.n_inner
        if ACTIVATIONS[self.mlp].gated:
            return (8 * self.n_embd // 3 + 31) // 32 * 32
        return 4 * self.n_embd

    @property
    def linear_layers(self) -> BlockLayers:
        """The shapes of a block's linear layers, for all that build, count or measure them."""
        d, inner, head = self.n_embd, self.inner_width, self.head_width
        q, kv = self.n_head * head, self.kv_heads * head
        gate = (Part("gate", inner),) if ACTIVATIONS[self.mlp].gated else ()
        up = (1 + len(gate)) * inner
        return BlockLayers(
            qkv=LinearShape(d, q + 2 * kv, head, (Part("q", q), Part("k", kv), Part("v", kv))),
            out=LinearShape(q, d, d, (Part("out", d),)),
            up=LinearShape(d, up, inner, (*gate, Part("up", inner))),
            down=LinearShape(inner, d, d, (Part("down", d),)),
        )
