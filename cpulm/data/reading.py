"""What all readers share: how files are read, what is lost, and the chunks of documents that they yield."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Literal, NamedTuple

from cpulm.data.joined import separated
from cpulm.data.losses import Losses
from cpulm.data.marks import Mark
from cpulm.data.records.chat import ChatTemplate
from cpulm.data.records.conditions import parse_condition
from cpulm.data.records.template import Template, parse_template
from cpulm.data.sources import SourceFile
from cpulm.errors import DataError, SettingsError
from cpulm.settings import DataSettings

Errors = Literal["strict", "replace"]
DocumentUnit = Literal["file", "line", "paragraph"]

READERS_VERSION = 4
"""Counts what readers make of the same file: tokens of earlier readers are not taken from the cache."""


class Reading(NamedTuple):
    """How files are read; the settings of ``data`` with these names.

    Attributes:
        field: the column or field that holds the text of a row.
        errors: ``replace`` puts U+FFFD in the place of bytes that cannot be decoded.
        encoding: of files that are not UTF-8.
        skip_bad: leave out rows that cannot be used.
        template: how the columns of a row make its text; empty: the text is ``field``.
        where: conditions that a row must meet.
        format: the format of all files; ``auto``: by their suffixes.
        document: what one document is in plain text.
        separator: the text between the documents of plain text; empty: there is none.
        loss_after: the column of the template after whose value the loss counts; empty: it counts everywhere.
        chat: rows are conversations; ``field``, if it is not the usual one, holds their messages.
        row_weight: the column that says how often a row is used; empty: once.
        share: the part of the batches of rows that is read, of Parquet and Arrow.
    """

    field: str = "text"
    errors: Errors = "strict"
    encoding: str = "utf-8"
    skip_bad: bool = False
    template: str = ""
    where: tuple[str, ...] = ()
    format: str = "auto"
    document: DocumentUnit = "file"
    separator: str = ""
    loss_after: str = ""
    chat: bool = False
    row_weight: str = ""
    share: float = 1.0

    @property
    def once(self) -> Reading:
        """The same, but each row is used once."""
        return self._replace(row_weight="")

    @property
    def masks_loss(self) -> bool:
        """Whether the loss does not count everywhere."""
        return bool(self.loss_after) or self.chat

    @property
    def rows_are_whole(self) -> bool:
        """Whether no document is cut to be held out in part: half a record is none."""
        return bool(self.template) or self.chat

    @property
    def parsed_template(self) -> Template | None:
        """The template of columns, if there is one."""
        return parse_template(self.template, self.loss_after) if self.template else None

    @property
    def row_template(self) -> Template | ChatTemplate | None:
        """What makes documents of rows, if it is not one field that holds the text."""
        if self.chat:
            return ChatTemplate("" if self.field == DEFAULT.field else self.field)
        return self.parsed_template

    @property
    def special_tokens(self) -> list[str]:
        """The names of special tokens in the documents."""
        template = self.row_template
        return template.special_tokens if template is not None else []

    @classmethod
    def of(cls, data: DataSettings) -> Reading:
        """Take the settings of ``data``.

        Raises:
            SettingsError: if the template or a condition cannot be understood, or two settings exclude each
                other.
        """
        if data.chat and (data.template or data.loss_after):
            name = "template" if data.template else "loss_after"
            raise SettingsError(
                f"data.chat and data.{name} both say how rows are read",
                "leave one out: conversations have a template of their own, and their answers count",
            )
        if data.template:
            if data.field != DEFAULT.field:
                raise SettingsError(
                    "data.field and data.template both say what the text of a row is",
                    f"keep the template: it can name the field too, as {{{data.field}}}",
                )
            parse_template(data.template, data.loss_after)
        elif data.loss_after:
            raise SettingsError(
                f"data.loss_after = {data.loss_after!r} needs a template that says what follows it",
                f"such as --template '{{{data.loss_after}}} {{text}}'",
            )
        for condition in data.where:
            parse_condition(condition)
        if data.separator and data.document != "file":
            raise SettingsError(
                f"data.separator and data.document={data.document} both say where a document ends",
                "keep one of them",
            )
        return cls(
            data.field,
            data.errors,
            codecs.lookup(data.encoding).name,
            data.skip_bad,
            data.template,
            tuple(data.where),
            data.format,
            data.document,
            data.separator,
            data.loss_after,
            data.chat,
            data.row_weight,
        )


DEFAULT = Reading()


class DocumentChunk(NamedTuple):
    """A part of a document.

    ``name`` is the document's; ``ends`` marks its last chunk; ``source_bytes`` were read for the chunk.
    ``marks`` are special tokens and borders of the loss in it; ``values`` are those of a template's columns;
    ``weight`` is how often the document is used.
    """

    name: str
    text: str
    ends: bool
    source_bytes: int
    marks: tuple[Mark, ...] = ()
    values: tuple[str, ...] = ()
    weight: float = 1.0


class DocumentBlock(NamedTuple):
    """Whole documents of one file without marks, many at once; none is empty.

    ``file`` and a number are a document's name; ``data`` is their text as :mod:`cpulm.data.joined` has it;
    ``values`` are those of all documents for each column of a template.
    """

    file: str
    numbers: Sequence[int]
    data: bytes
    source_bytes: int
    values: tuple[Sequence[str], ...] = ()

    def chunks(self) -> Iterator[DocumentChunk]:
        """The documents one by one, with equal parts of the bytes that were read."""
        each, rest = divmod(self.source_bytes, len(self.numbers))
        values = zip(*self.values, strict=True) if self.values else repeat(())
        for number, text, its_values in zip(self.numbers, separated(self.data), values, strict=False):
            name = f"{self.file}:{number}"
            yield DocumentChunk(name, text.decode(), True, each + rest, (), its_values)
            rest = 0


class EncodingError(DataError):
    """The file ``name`` is in another encoding, ``likely`` if that can be guessed."""

    def __init__(self, message: str, hint: str, name: str, likely: str | None) -> None:
        super().__init__(message, hint)
        self.name, self.likely = name, likely

    @property
    def what(self) -> str:
        """The file and, if it can be guessed, the encoding."""
        return f"{self.name} ({self.likely})" if self.likely else self.name


Reader = Callable[[SourceFile, Reading, Losses], Iterator[DocumentChunk | DocumentBlock]]
"""Yields the documents of a file, each as one or more chunks, or many at once; raises DataError."""
