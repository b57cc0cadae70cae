"""Several generations of one model at once: a step reads the newest token of all of their texts together.

The weights are read from memory once a step for all, which is what a step mostly waits for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cpulm.generation.generate import Generation
from cpulm.model.cache import JoinedCaches
from cpulm.model.transformer import Transformer

READ_AT_ONCE = 64
"""Tokens of a prompt that are read in a step: the other texts wait for no more."""


class Together:
    """Reads for several generations; which ones may be others in every step.

    Several tokens of a generation, such as a prompt, are read in pieces: one piece a step, of the first
    generation that has any. The pieces are the same however many others there are, so each text is as if it
    were alone, but for the rounding of what is not computed in the compiled kernels.
    """

    def __init__(self, model: Transformer) -> None:
        self._model, self._joined = model, JoinedCaches()

    @torch.inference_mode()
    def step(self, generations: Sequence[Generation]) -> Iterator[tuple[Generation, Tensor]]:
        """Read a step.

        Yields:
            Each generation that can choose its next tokens now, with the logits that it chooses from.
        """
        lengths = [one.unread.size(1) for one in generations]
        ready = [one for one, length in zip(generations, lengths, strict=True) if length == 1]
        prompt = next((one for one, length in zip(generations, lengths, strict=True) if length > 1), None)
        if ready:
            self._joined.caches = [one.cache for one in ready]
            idx = torch.cat([one.unread for one in ready])
            logits = self._model(idx, cache=self._joined)[:, -1].cpu()
            yield from zip(ready, logits.split(self._joined.batch_sizes), strict=True)
        if prompt is not None:
            different = prompt.cache.batch_size if prompt.made_tokens else 1
            logits = prompt.read(max(1, READ_AT_ONCE // different))
            if not prompt.unread.size(1):
                yield prompt, logits
