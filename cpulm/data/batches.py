"""The batches of a run, as its settings say: windows of the text, or records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch

from cpulm.data.loader import Loader, val_batch_count, val_batches
from cpulm.data.record_loader import PackedRecords, RecordLoader
from cpulm.data.split_tokens import TokenSplitter, merged_parts
from cpulm.data.tokenfile import TokenFolder
from cpulm.settings import Settings

TrainingBatches: TypeAlias = Loader | RecordLoader


def training_batches(settings: Settings, tokens: TokenFolder) -> TrainingBatches:
    """The loader of a run.

    Raises:
        SettingsError: as :class:`Loader`.
    """
    train, block = settings.train, settings.model.block_size
    if train.records:
        records = PackedRecords(tokens.train, tokens.tokenizer.eot_id, block, tokens.train_mask)
        return RecordLoader(records, train.micro_batch_size, train.seed)
    splitter = None
    if train.bpe_dropout:  # a vocabulary without merges has nothing to split
        splitter = TokenSplitter(merged_parts(tokens.tokenizer), train.bpe_dropout, train.seed)
    return Loader(tokens.train, block, train.micro_batch_size, train.seed, tokens.train_mask, splitter)


class ValidationBatches:
    """The validation split in batches of inputs and targets, int64 [B, T]; a target of -100 does not count.

    Raises:
        SettingsError: if the split does not hold one window.
    """

    def __init__(self, settings: Settings, tokens: TokenFolder) -> None:
        self._settings, self._tokens = settings, tokens
        self._records: PackedRecords | None = None
        if settings.train.records:
            eot_id, block = tokens.tokenizer.eot_id, settings.model.block_size
            self._records = PackedRecords(tokens.val, eot_id, block, tokens.val_mask)

    def __len__(self) -> int:
        return self._count(self._settings.eval.batches)

    @property
    def whole(self) -> bool:
        """Whether they hold the whole split."""
        return len(self) == self._count(None)

    def _count(self, limit: int | None) -> int:
        settings = self._settings
        size = settings.train.micro_batch_size
        if self._records is not None:
            return self._records.batch_count(size, limit)
        return val_batch_count(self._tokens.val, settings.model.block_size, size, limit)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        settings, tokens = self._settings, self._tokens
        size, limit = settings.train.micro_batch_size, settings.eval.batches
        if self._records is not None:
            return self._records.in_order(size, limit)
        return val_batches(tokens.val, settings.model.block_size, size, limit, tokens.val_mask)
