"""The settings of the text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from cpulm.settings.setting_types import LARGEST_VOCABULARY, Section, Sources, WeightOfText

TokenizerKind = Literal["bpe", "byte", "char", "word"]


class DataSettings(Section):
    """The training and validation text."""

    source: Sources = Field(["builtin:python"], min_length=1)
    """Files, folders, globs, datasets (`hf:NAME:SPLIT`), one prepared token folder, or `builtin:python`."""
    val_source: Sources = Field([])
    """A separate validation text; if empty, a part of `source` is held out."""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    """The part that is held out."""
    tokenizer: str = "bpe"
    """`bpe` (byte-level), `byte`, `char`, `word`, the path of a `tokenizer.json` or of a `.txt` file of
    words."""
    vocab_size: int | None = Field(4096, ge=2, le=LARGEST_VOCABULARY)
    """Entries of the vocabulary of `bpe` and `word`; unset: as many as the tokenizer has."""
    format: str = "auto"
    """`text`, `csv`, `tsv`, `jsonl`, `json`, `parquet`, `arrow`, `html`, `markdown` or `epub`; `auto` goes by
    the suffixes."""
    document: Literal["file", "line", "paragraph"] = "file"
    """What one document is in plain text."""
    separator: str = ""
    """The text between documents of plain text, such as `<|endoftext|>`."""
    field: str = "text"
    """The column or field with the text of a row; `a.b` is a nested one."""
    template: str = ""
    """How columns make the text of a row, such as `{grade} {holds|list}`, instead of `field`."""
    loss_after: str = ""
    """A column of the template: only what follows its value counts in the loss."""
    chat: bool = False
    """Rows are conversations in OpenAI's or ShareGPT's form, and records: the model learns to answer."""
    where: Sources = Field([])
    """Conditions that a row must meet, such as `grade>=6`."""
    share: float = Field(1.0, gt=0, le=1)
    """About this part of `source` is used: documents, and pieces of about 64 K characters of long ones, by
    hashes of their names. For texts of which a run sees only a part."""
    weights: list[WeightOfText] = Field([])
    """How often an epoch has the text of each `source`, such as `[3, 0.2]`; empty: once."""
    row_weight: str = ""
    """A column that says how often an epoch has the row, such as 0.5: by hashes of names, as `share`."""
    dedup: bool = False
    """Leave out documents whose text was there before, and training text that is in the validation text."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: stop and name the place, or put U+FFFD there."""
    encoding: str = "utf-8"
    """The encoding of files that are not UTF-8, such as `cp1252`."""
    skip_bad: bool = False
    """Leave out rows that cannot be used, instead of stopping at the first."""

    @model_validator(mode="after")
    def _one_weight_for_each_source(self) -> DataSettings:
        if self.weights and len(self.weights) != len(self.source):
            raise ValueError(f"{len(self.weights)} weights, but {len(self.source)} in source: one for each")
        return self

    @field_validator("encoding")
    @classmethod
    def _is_an_encoding(cls, value: str) -> str:
        try:
            "text".encode(value)
        except (LookupError, ValueError):
            raise ValueError("must be the name of an encoding, such as cp1252, utf-16 or shift_jis") from None
        return value
