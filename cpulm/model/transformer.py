"""The model: a decoder-only transformer, to be read from top to bottom.

By default the Qwen3 block (https://arxiv.org/abs/2505.09388); with ``norm: layernorm``,
``position: learned``, ``mlp: gelu``, ``bias: true`` and ``qk_norm: false`` the GPT-2 block. Both give the
logits of their implementation in transformers when the weights are copied over.

Shapes: B sequences, T tokens, V entries of the vocabulary, H query heads, K key-value heads, D head_dim.

Layout of the fused matrices: the rows of ``attn.qkv`` are all query heads, then all key heads, then all
value heads; the rows of ``mlp.gate_up`` are the gate, then the up projection.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpulm.layer_shapes import ACTIVATIONS, LinearShape
from cpulm.model import fused, int8_head_loss, int8_linear, native_ops
from cpulm.model.activations import FORMULAS
from cpulm.model.cache import AnyCache, JoinedCaches
from cpulm.model.decoding import decoder_for
from cpulm.model.distillation import DistillationLoss, TeacherOutput
from cpulm.model.documents import AttentionSpan, attention_span, positions_in_document
from cpulm.model.int8_linear import Quantizer
from cpulm.model.modules import Dropout, Embedding, LayerNorm, Linear, RMSNorm, make_norm
from cpulm.native.blocks import BlockMatrix
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import AttentionShape, Kernels, QKTransform
from cpulm.settings import ModelSettings

INIT_STD = 0.02


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads, QK norm and rotary embedding, by the settings."""

    def __init__(self, settings: ModelSettings, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head = settings.n_head, settings.kv_heads
        self.head_dim, self.dropout = settings.head_width, settings.dropout
        layers = settings.linear_layers
        self.qkv = Linear(layers.qkv, bias=settings.bias)
        self.out = Linear(layers.out, bias=settings.bias)
        self.q_norm = RMSNorm(self.head_dim, settings.norm_eps) if settings.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, settings.norm_eps) if settings.qk_norm else None
        self.eps = settings.norm_eps
        self.kernels: Kernels | None = None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        cache: AnyCache | None,
        span: AttentionSpan | None = None,
    ) -> Tensor:
        B, T, _ = x.shape
        qkv = self.qkv(x, cached=cache is not None)
        if self.kernels is not None and cache is None and native_ops.fits(self.kernels, qkv, self.head_dim):
            first = None if span is None else span.first
            y: Tensor = self.out(self.attend_in_kernels(self.kernels, qkv, rope, first))
            return y
        heads = qkv.view(B, T, -1, self.head_dim)
        q, k, v = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = fused.rotate(q, *rope), fused.rotate(k, *rope)
        mask = None if span is None else span.mask
        y = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), cache, mask)
        merged: Tensor = self.out(y.transpose(1, 2).reshape(B, T, -1), cached=cache is not None)
        return merged

    def attend_in_kernels(
        self, kernels: Kernels, qkv: Tensor, rope: tuple[Tensor, Tensor] | None, first: Tensor | None
    ) -> Tensor:
        """Attention in the compiled kernels, from qkv [B, T, (H + 2 K) D] to the outputs [B, T, H D]."""
        dropout = self.dropout if self.training else 0.0
        seed = int(torch.randint(2**32, ())) if dropout else 0
        shape = AttentionShape(self.n_head, self.n_kv_head, self.head_dim, self.eps, dropout, seed)
        q_weight = None if self.q_norm is None else self.q_norm.weight
        k_weight = None if self.k_norm is None else self.k_norm.weight
        transform = QKTransform(q_weight, k_weight, *(rope or (None, None)))
        return native_ops.attention(kernels, qkv, shape, transform, first)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: AnyCache | None, mask: Tensor | None = None
    ) -> Tensor:
        """Attention of q [B, H, T, D] to the k, v [B, K, T, D] up to its own token and to those in the cache.

        Without a cache, a ``mask`` [B, 1, T, T] that is added to the scores may replace the causal mask.
        """
        if isinstance(cache, JoinedCaches):
            parts = zip(*(part.split(cache.batch_sizes) for part in (q, k, v)), cache.caches, strict=True)
            return torch.cat([self.attend(*one) for one in parts])
        seen = 0 if cache is None else cache.length
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        T = q.size(2)
        if seen and T > 1:  # is_causal would align the first query with the first key
            mask = torch.ones(T, seen + T, dtype=torch.bool, device=q.device).tril(seen)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and seen == 0,
            enable_gqa=self.n_kv_head != self.n_head,
        )


class MLP(nn.Module):
    """``down(activation(up))``; with a gated activation gate and up are one matrix, ``gate_up``.

    SwiGLU is ``down(silu(gate) * up)`` (https://arxiv.org/abs/2002.05202).
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        layers = settings.linear_layers
        self.formula = FORMULAS[settings.mlp]
        self.first_name = "gate_up" if ACTIVATIONS[settings.mlp].gated else "up"
        self.add_module(self.first_name, Linear(layers.up, bias=settings.bias))
        self.down = Linear(layers.down, bias=settings.bias)
        self.kernels: Kernels | None = None

    @property
    def first(self) -> nn.Module:
        """The matrix before the activation."""
        first: nn.Module = getattr(self, self.first_name)
        return first

    def forward(self, x: Tensor, *, cached: bool = False) -> Tensor:
        y: Tensor = self.down(self.activate(self.first(x, cached=cached)), cached=cached)
        return y

    def activate(self, x: Tensor) -> Tensor:
        """The hidden layer [..., inner_width] from the first matrix's outputs [..., up_width]."""
        native, kernels = self.formula.native, self.kernels
        if native is not None and kernels is not None and native_ops.fits(kernels, x, self.down.in_features):
            return native(kernels, x)
        return self.formula.function(x)


class Block(nn.Module):
    """Attention, then the MLP; each reads the residual stream through a norm and adds to it."""

    def __init__(self, settings: ModelSettings, layer: int) -> None:
        super().__init__()
        self.attn_norm = make_norm(settings)
        self.attn = Attention(settings, layer)
        self.mlp_norm = make_norm(settings)
        self.mlp = MLP(settings)
        self.dropout = Dropout(settings.dropout)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        cache: AnyCache | None,
        span: AttentionSpan | None = None,
    ) -> Tensor:
        x = x + self.dropout(self.attn(self.attn_norm(x), rope, cache, span))
        y: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x), cached=cache is not None))
        return y


class Transformer(nn.Module):
    """The language model.

    All matrices are zero until :meth:`init_weights` draws them or ``load_state_dict`` loads them.

    Args:
        settings: shape and parts.
        vocab_size: entries of the vocabulary, without padding.
    """

    cos: Tensor
    sin: Tensor
    sinusoids: Tensor

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        super().__init__()
        self.settings, self.vocab_size = settings, vocab_size
        self.head_kernels: Int8Kernels | None = None
        self.head_blocks: BlockMatrix | None = None
        self.attention_kernels: Kernels | None = None
        self.document_eot_id: int | None = None
        self.wte = Embedding(vocab_size, settings.n_embd)
        self.wpe = Embedding(settings.block_size, settings.n_embd) if settings.position == "learned" else None
        self.dropout = Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings, layer) for layer in range(settings.n_layer))
        self.norm = make_norm(settings)
        head = LinearShape(settings.n_embd, vocab_size, vocab_size)
        self.lm_head = None if settings.tie_embeddings else Linear(head, bias=False)
        if settings.position == "rope":
            cos, sin = rope_tables(settings.block_size, settings.head_width, settings.rope_theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        if settings.position == "sinusoidal":
            table = sinusoid_table(settings.block_size, settings.n_embd)
            self.register_buffer("sinusoids", table, persistent=False)

    @property
    def head_weight(self) -> Tensor:
        """The output matrix [V, n_embd]; with tied embeddings the token embedding."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    @property
    def writes_in(self) -> str:
        """The precision of the matrices in forward passes with a cache: ``int8`` or ``fp32``."""
        return "fp32" if self.head_blocks is None else "int8"

    def mask_documents(self, eot_id: int | None) -> None:
        """Restrict attention to the token's document, which begins at ``eot_id``, as do its positions; None:
        no restriction.

        This applies to whole windows, in training and evaluation. With a cache, as in generation, there is
        one document only.
        """
        self.document_eot_id = eot_id

    def use_kernels(self, kernels: Kernels | None) -> None:
        """Compute norms, attention and activation in the compiled kernels if they fit; None: in torch."""
        self.attention_kernels = kernels
        for module in self.modules():
            if isinstance(module, (RMSNorm, LayerNorm, Attention, MLP, Dropout)):
                module.kernels = kernels

    def use_int8(self, quantizer: Quantizer | None) -> None:
        """Train the linear layers in int8 if they fit; None: in fp32. The head needs the compiled kernels."""
        usable = isinstance(quantizer, Int8Kernels) and int8_head_loss.fits(quantizer, self.head_weight)
        self.head_kernels = quantizer if isinstance(quantizer, Int8Kernels) and usable else None
        for module in self.blocks.modules():
            if isinstance(module, Linear):
                taken = quantizer is not None and int8_linear.fits(
                    quantizer, module.in_features, module.out_features
                )
                module.quantizer = quantizer if taken else None

    def freeze(self) -> None:
        """Make the model a teacher: without dropout and gradients, its int8 weights quantized once."""
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, Linear):
                module.freeze()

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw all weights from ``seed`` alone, without the global random state.

        Normal with a standard deviation of 0.02; the projections back into the residual stream are
        divided by sqrt(2 n_layer), as in GPT-2, so that the stream does not grow with depth. Biases are zero,
        norm weights one. Zeros for those projections trained worse (validation loss 1.93 against 1.90
        after 120 steps of Muon), and so did fan-in scaling with zeros (1.94).
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = INIT_STD / math.sqrt(2 * self.settings.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = residual_std if name.endswith(("attn.out.weight", "mlp.down.weight")) else INIT_STD
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        cache: AnyCache | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """The loss if ``targets`` are given, else the logits.

        Args:
            idx: [B, T] int64 tokens; with a cache, those that follow its tokens.
            targets: [B, T] int64, the next token of each position; -100 is excluded from the mean.
            cache: keys and values of earlier tokens; those of ``idx`` are appended.
            last_only: logits of the last position only, [B, 1, V].

        Returns:
            Mean cross-entropy in nats (a scalar), or float32 logits [B, T, V].

        Raises:
            ValueError: if the tokens do not fit into ``block_size`` or the cache.
        """
        if cache is not None and targets is None and idx.size(1) == 1:
            logits = self._decoded(idx, cache)
            if logits is not None:
                return logits
        x = self.hidden(idx, cache, last_only=last_only)
        if targets is None and cache is not None and self.head_blocks is not None:
            return self.head_blocks.product(x)
        if targets is None:
            return F.linear(x, self.head_weight).float()
        rows = x.flatten(0, 1)
        if self.head_kernels is not None and self._trains_in_int8(rows):
            return int8_head_loss.head_loss(self.head_kernels, rows, self.head_weight, targets.flatten())
        return fused.head_loss(rows, self.head_weight, targets.flatten())

    def distillation_loss(self, idx: Tensor, targets: Tensor, teacher: TeacherOutput) -> DistillationLoss:
        """The loss on the text and on a teacher's distribution.

        Args:
            idx: as in :meth:`forward`, as ``targets``.
            teacher: its output for the same ``idx``, N = B T.
        """
        rows, targets = self.hidden(idx).flatten(0, 1), targets.flatten()
        if self.head_kernels is not None and self._trains_in_int8(rows):
            kernels = self.head_kernels
            return int8_head_loss.distilled_head_loss(kernels, rows, self.head_weight, targets, teacher)
        return fused.distilled_head_loss(rows, self.head_weight, targets, teacher)

    def _trains_in_int8(self, rows: Tensor) -> bool:
        return torch.is_grad_enabled() and fused.can_fuse(rows)

    def hidden(self, idx: Tensor, cache: AnyCache | None = None, *, last_only: bool = False) -> Tensor:
        """The last norm's output [B, T, n_embd], before the head; arguments as in :meth:`forward`."""
        T = idx.size(1)
        positions = self._positions(T) if cache is None else cache.positions(T)
        x = self.embed(idx, positions, masked=cache is None)
        span = None
        if self.document_eot_id is not None and cache is None:
            at_once = native_ops.fits(self.attention_kernels, x, self.settings.head_width)
            span = attention_span(idx, self.document_eot_id, None if at_once else x.dtype)
        rope = (self.cos[positions], self.sin[positions]) if self.settings.position == "rope" else None
        for block in self.blocks:
            if self.settings.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, cache, span, use_reentrant=False)
            else:
                x = block(x, rope, cache, span)
        if cache is not None:
            cache.advance(T)
        y: Tensor = self.norm(x[:, -1:] if last_only else x)
        return y

    def _decoded(self, idx: Tensor, cache: AnyCache) -> Tensor | None:
        """The logits [B, 1, V] behind one token of each sequence, by the kernel; None if it cannot."""
        decoder = None if self.training and self.settings.dropout else decoder_for(self, cache)
        if decoder is None:
            return None
        tables = (self.cos, self.sin) if self.settings.position == "rope" else (None, None)
        x = self.embed(idx, cache.positions(1), masked=False)
        logits = decoder.step(x[:, 0], cache.placed(), *tables)
        cache.advance(1)
        return logits.unsqueeze(1)

    def _positions(self, tokens: int) -> slice:
        """Of a whole window."""
        if tokens > self.settings.block_size:
            raise ValueError(f"{tokens} tokens, and the limit is {self.settings.block_size}")
        return slice(0, tokens)

    def embed(self, idx: Tensor, at: slice | Tensor, *, masked: bool) -> Tensor:
        """Embeddings [B, T, n_embd] of ``idx`` [B, T] at the positions ``at``, T of them or [B, T].

        Args:
            masked: whether positions start from 0 in each document, if the model masks documents.
        """
        x: Tensor = self.wte(idx)
        positions = None if self.wpe is None else self.wpe.weight
        if self.settings.position == "sinusoidal":
            positions = self.sinusoids
        if positions is not None and self.document_eot_id is not None and masked:
            x = x + F.embedding(positions_in_document(idx, self.document_eot_id), positions)
        elif positions is not None:
            x = x + positions[at]
        dropped: Tensor = self.dropout(x)
        return dropped


def rope_tables(tokens: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [tokens, head_dim / 2] of the rotary angles (https://arxiv.org/abs/2104.09864)."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(tokens, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def sinusoid_table(tokens: int, width: int) -> Tensor:
    """Fixed positions [tokens, width], half sines and half cosines (https://arxiv.org/abs/1706.03762).

    Scaled to the root mean square of newly drawn embeddings, which they would otherwise dominate.
    """
    cos, sin = rope_tables(tokens, width, 10_000.0)
    return torch.cat((sin, cos), dim=-1) * (INIT_STD * math.sqrt(2))
