"""The attention mask and the positions of windows that hold several documents.

As an input, the end-of-text token opens the next document: it predicts only that document's first token, and
generation and evaluation begin a document with it too. As a target, it ends the previous document, whose last
token predicts it. A window is thus computed like its documents alone, each as the end-of-text token and its
text; the first document of a window begins where the window begins. In each the positions start from 0
too; rotary embeddings show only their differences, so for them there is nothing to do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionSpan(NamedTuple):
    """How far back each token attends: ``first`` for the compiled kernels, or ``mask`` for torch.

    Attributes:
        first: [B, T] int32, the first token that each token attends to.
        mask: [B, 1, T, T], added to the scores: 0 for a token that is attended to, else minus infinity.
    """

    first: Tensor | None = None
    mask: Tensor | None = None


def attention_span(idx: Tensor, eot_id: int, mask_dtype: torch.dtype | None) -> AttentionSpan:
    """The span of each token of ``idx`` [B, T]: for the kernels, or as a mask of ``mask_dtype`` for torch."""
    if mask_dtype is None:
        return AttentionSpan(first=first_of_document(idx, eot_id))
    return AttentionSpan(mask=document_mask(idx, eot_id, mask_dtype))


def first_of_document(idx: Tensor, eot_id: int) -> Tensor:
    """The position at which the document of each token of ``idx`` [B, T] begins in its row: int32 [B, T]."""
    positions = torch.arange(idx.size(1), dtype=torch.int32, device=idx.device)
    return torch.where(idx == eot_id, positions, 0).cummax(dim=1).values


def positions_in_document(idx: Tensor, eot_id: int) -> Tensor:
    """The position of each token of ``idx`` [B, T] in its document: int64 [B, T]."""
    return torch.arange(idx.size(1), device=idx.device) - first_of_document(idx, eot_id)


def document_mask(idx: Tensor, eot_id: int, dtype: torch.dtype) -> Tensor:
    """The mask of causal attention inside each document, added to the scores: [B, 1, T, T], 0 or -infinity.

    Floating point, and one mask for all layers: from a boolean mask torch would allocate one per layer.
    """
    documents = (idx == eot_id).cumsum(dim=1)
    seen = (documents[:, :, None] == documents[:, None, :]).tril()
    mask = torch.zeros(seen.shape, dtype=dtype, device=idx.device).masked_fill(~seen, -torch.inf)
    return mask.unsqueeze(1)
