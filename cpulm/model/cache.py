"""The key-value cache, with which generation computes keys and values of each token once."""

from __future__ import annotations

import torch
from torch import Tensor

from cpulm.native.decode import Decoder
from cpulm.settings import ModelSettings


class KVCache:
    """Keys and values of up to ``max_tokens`` tokens in every layer, allocated once.

    ``Transformer.forward(idx, cache=cache)`` appends the T tokens of ``idx`` at the positions
    ``length .. length + T - 1``, for any T: a prompt and single tokens are treated alike.

    Args:
        settings: the model's settings.
        batch_size: sequences generated together.
        max_tokens: limit of prompt and answer together; at most ``block_size``.
        dtype: that of the model's activations.
        device: that of the model.

    Raises:
        ValueError: if ``max_tokens`` is not between 1 and the model's ``block_size``.
    """

    def __init__(
        self,
        settings: ModelSettings,
        batch_size: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 1 <= max_tokens <= settings.block_size:
            raise ValueError(f"a cache of {max_tokens} tokens for a block_size of {settings.block_size}")
        shape = (settings.n_layer, batch_size, settings.kv_heads, max_tokens, settings.head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.max_tokens = max_tokens
        self.length = 0
        self.decoder: Decoder | None = None
        """The compiled decoder with this memory and a model's weights; None before its first use."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new k and v [B, n_kv_head, T, head_dim] of one layer.

        ``length`` does not change: all layers append at the same position, then :meth:`advance` is called.

        Returns:
            All keys and values so far, [B, n_kv_head, length + T, head_dim] each: views, not copies.
        """
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Add ``tokens`` to the length, after all layers have appended them."""
        self.length += tokens

    def clear(self) -> None:
        """Remove all tokens, but keep the memory."""
        self.length = 0
