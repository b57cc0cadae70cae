"""The key-value cache, with which generation computes keys and values of each token once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cpulm.native.decode import CachedSequences, Decoder, Placed
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
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.length = 0
        self.decoder: Decoder | None = None
        """The compiled decoder of the model that uses this cache; None before its first use."""
        self._sequences: CachedSequences | None = None

    @property
    def size_bytes(self) -> int:
        """The memory that it takes when it is full."""
        return self.keys.nbytes + self.values.nbytes

    def positions(self, tokens: int) -> slice:
        """The positions of the next ``tokens`` of each sequence.

        Raises:
            ValueError: if there is no room for them.
        """
        end = self.length + tokens
        if end > self.max_tokens:
            raise ValueError(f"{end} tokens, and the limit is {self.max_tokens}")
        return slice(self.length, end)

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

    def placed(self) -> list[Placed]:
        """The sequences in the form that the compiled decoder takes."""
        if self._sequences is None:
            self._sequences = CachedSequences(self.keys, self.values)
        return [(self._sequences, self.length)]

    def advance(self, tokens: int) -> None:
        """Add ``tokens`` to the length, after all layers have appended them."""
        self.length += tokens

    def clear(self) -> None:
        """Remove all tokens, but keep the memory."""
        self.length = 0

    @contextmanager
    def only_first(self) -> Iterator[KVCache]:
        """A cache of the first sequence; what is appended to it is appended to all sequences."""
        first, begin = copy.copy(self), self.length
        first.keys, first.values, first.batch_size = self.keys[:, :1], self.values[:, :1], 1
        first._sequences = None
        yield first
        self.length, new = first.length, slice(begin, first.length)
        for of_all, of_first in ((self.keys, first.keys), (self.values, first.values)):
            of_all[:, 1:, :, new] = of_first[:, :, :, new]


class JoinedCaches:
    """Caches of one model, at any lengths, whose sequences take one token each in a common step.

    Stands for a cache in ``Transformer.forward(idx, cache=...)``: idx [B, 1] with the sequences of all caches
    in their order. Without gradients only.
    """

    def __init__(self, caches: Sequence[KVCache] = ()) -> None:
        self.caches = caches
        self.decoder: Decoder | None = None
        """As that of :class:`KVCache`; it stays if other caches are joined."""

    @property
    def keys(self) -> Tensor:
        """Those of the first cache: all have its dtype and its device."""
        return self.caches[0].keys

    @property
    def batch_sizes(self) -> list[int]:
        """The number of sequences of each cache."""
        return [cache.batch_size for cache in self.caches]

    def positions(self, tokens: int) -> Tensor:
        """The positions [B, 1] of the next token of each sequence.

        Raises:
            ValueError: if there is no room for it, or it is not one token.
        """
        if tokens != 1:
            raise ValueError(f"{tokens} tokens of each sequence, and joined caches take one")
        starts = torch.tensor([cache.positions(1).start for cache in self.caches])
        return starts.repeat_interleave(torch.tensor(self.batch_sizes))[:, None].to(self.keys.device)

    def placed(self) -> list[Placed]:
        """See :class:`KVCache`."""
        return [one for cache in self.caches for one in cache.placed()]

    def advance(self, tokens: int) -> None:
        """See :class:`KVCache`."""
        for cache in self.caches:
            cache.advance(tokens)


AnyCache = KVCache | JoinedCaches
