"""What each token may attend to where several documents lie in one window, one behind the other.

As an input the end-of-text token opens the document behind it: all that it predicts is that document's first
token, and generation and evaluation begin a document with it too. As a target it still ends the document
before, from whose last token it is predicted. So a window is what its documents are apart, each as the
end-of-text token and its text; the first one of a window begins wherever the window does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionSpan(NamedTuple):
    """How far back each token sees, for the compiled kernels or for torch: one of the two is there.

    Attributes:
        first: [B, T] int32, the first token that each one sees.
        mask: [B, 1, T, T], to be added to the scores: 0 where a token is seen, else minus infinity.
    """

    first: Tensor | None = None
    mask: Tensor | None = None


def attention_span(idx: Tensor, eot_id: int, mask_dtype: torch.dtype | None) -> AttentionSpan:
    """What each token of ``idx`` [B, T] sees: for the kernels, or as a mask of ``mask_dtype`` for torch."""
    if mask_dtype is None:
        return AttentionSpan(first=first_of_document(idx, eot_id))
    return AttentionSpan(mask=document_mask(idx, eot_id, mask_dtype))


def first_of_document(idx: Tensor, eot_id: int) -> Tensor:
    """Where the document of each token of ``idx`` [B, T] begins in its row: int32 [B, T]."""
    places = torch.arange(idx.size(1), dtype=torch.int32, device=idx.device)
    return torch.where(idx == eot_id, places, 0).cummax(dim=1).values


def document_mask(idx: Tensor, eot_id: int, dtype: torch.dtype) -> Tensor:
    """What causal attention inside each document adds to the scores: [B, 1, T, T], 0 or minus infinity.

    In numbers, and once for all layers: of a mask of truth values torch would make and keep one for each.
    """
    documents = (idx == eot_id).cumsum(dim=1)
    seen = (documents[:, :, None] == documents[:, None, :]).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=idx.device).masked_fill(~seen, -torch.inf)
    return mask.unsqueeze(1)
