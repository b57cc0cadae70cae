"""Records in generation: the prompt of the fields that are given, and the fields of what was written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cpulm.data.marked_text import special_id
from cpulm.data.records.template import Filled, Placeholder, SpecialToken, Template
from cpulm.data.records.values import RowError
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError, SettingsError

Seen = Mapping[str, Mapping[str, int]]
"""How often each value of a column was in the training data, as :mod:`cpulm.data.records.seen_values`."""

_MOST_LISTED = 12
_Parts: TypeAlias = tuple[str | SpecialToken | Placeholder, ...]


@dataclass(frozen=True)
class RecordPrompt:
    """A record up to its first field that is not given.

    It ends with the last given value or special token: the model writes the text between fields itself,
    because a tokenizer may join that to the next value.

    Attributes:
        template: of the training data.
        ids: the tokens, of which the first begins the record.
        text: their text.
        given: the values of its fields.
        rest: the parts of the template that are to be written.
    """

    template: Template
    ids: tuple[int, ...]
    text: str
    given: dict[str, str]
    rest: _Parts

    def values(self, tokenizer: Tokenizer, tokens: Sequence[int]) -> dict[str, str] | None:
        """The values of all fields of a record that goes on with ``tokens``; None if it has another form."""
        found = re.fullmatch(self._pattern(tokenizer), _text_with_specials(tokenizer, tokens), re.S)
        if found is None:
            return None
        written = (part.column for part in self.rest if isinstance(part, Placeholder))
        return {**self.given, **dict(zip(written, found.groups(), strict=True))}

    def row(self, values: Mapping[str, str]) -> dict[str, str]:
        """The values as cells of a table from which the template makes the same record: lists as JSON."""
        places = {place.column: place for place in self.template.places}
        return {
            name: text if (items := places[name].items) is None else items.parsed(text)
            for name, text in values.items()
        }

    @property
    def literals(self) -> str:
        """All text that the template has between fields."""
        return "".join(part for part in self.template.parts if isinstance(part, str))

    @property
    def literal(self) -> str:
        """What comes between the prompt and the first field that is to be written."""
        return self.rest[0] if self.rest and isinstance(self.rest[0], str) else ""

    def _pattern(self, tokenizer: Tokenizer) -> str:
        words = tokenizer.kind == "word"
        pattern = ""
        for part in self.rest:
            if isinstance(part, Placeholder):
                pattern += "(.*?)"
            elif isinstance(part, SpecialToken):
                pattern += re.escape(_shown_special(part.name))
            elif words:  # white space is one space, and none at the borders
                pattern += r"\s+".join(map(re.escape, re.split(r"\s+", part)))
            else:
                pattern += re.escape(part)
        return rf"\s*{pattern.removeprefix(chr(92) + 's+')}\s*" if words else pattern


def record_prompt(
    tokenizer: Tokenizer, template: Template, fields: Mapping[str, str], seen: Seen
) -> RecordPrompt:
    """Fill ``template`` with ``fields`` up to the first that is missing.

    Raises:
        SettingsError: if a field is not in the template, comes after one that is missing, or has a value that
            the training data did not have.
        DataError: if the tokenizer lacks a word or a character of a value.
    """
    missing = next((place.column for place in template.places if place.column not in fields), None)
    head, rest = _divided(tokenizer, template, fields)
    _require_known(template, fields, missing, head)
    try:
        made = head.fill(fields)
    except RowError as error:
        raise SettingsError(f"--field: {error}", error.hint) from error
    given = dict(zip(head.columns, made.values, strict=True))
    for column, value in given.items():
        _require_seen(column, value, seen.get(column))
    ids = [tokenizer.eot_id, *encode_marked(tokenizer, made)]
    return RecordPrompt(template, tuple(ids), made.text, given, rest)


def _divided(tokenizer: Tokenizer, template: Template, fields: Mapping[str, str]) -> tuple[Template, _Parts]:
    """The template up to its last given value or special token before a missing one, and its other parts."""
    head: list[str | SpecialToken | Placeholder] = []
    border = 0
    for part in template.parts:
        if isinstance(part, Placeholder) and part.column not in fields:
            break
        head.append(part)
        if not isinstance(part, str):
            border = len(head)
    head, rest = head[:border], list(template.parts[border:])
    if tokenizer.kind == "word" and head and rest and isinstance(rest[0], str):
        # What follows a value without white space belongs to its word.
        joined = rest[0].split()[0] if rest[0].strip() and not rest[0][0].isspace() else ""
        head, rest = [*head, joined], [rest[0][len(joined) :], *rest[1:]]
    return Template(tuple(head), template.loss_after), tuple(part for part in rest if part != "")


def _require_known(
    template: Template, fields: Mapping[str, str], missing: str | None, head: Template
) -> None:
    for name in fields:
        if name not in template.columns:
            near = difflib.get_close_matches(name, template.columns, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SettingsError(
                f"--field {name}: the records have no such field",
                f"{hint}Fields: {', '.join(template.columns)}",
            )
        if name not in head.columns:
            raise SettingsError(
                f"--field {name}: it comes after {missing}, which is not given: a record is written from its "
                "beginning to its end",
                f"give {missing} too, or train with a template that begins with {name}",
            )


def _require_seen(column: str, value: str, counts: Mapping[str, int] | None) -> None:
    if counts is None or value in counts:
        return
    near = difflib.get_close_matches(value, counts, n=3)
    listed = ", ".join(near or list(counts)[:_MOST_LISTED])
    raise SettingsError(
        f"--field {column}={value}: no record of the training data has this value",
        f"{'near ones are' if near else 'it has'} {listed}; all of them: --fields",
    )


def encode_marked(tokenizer: Tokenizer, filled: Filled) -> Iterator[int]:
    """The ids of a record's beginning; its marks are borders, as in training.

    Raises:
        DataError: if the tokenizer lacks a character or a word.
    """
    begin = 0
    for place, name in [*filled.marks, (len(filled.text), "")]:
        part = filled.text[begin:place]
        if tokenizer.kind == "word" and (unknown := _unknown_word(tokenizer, part)):
            raise DataError(f"the vocabulary has no word {unknown!r}", "use words of the training data")
        yield from tokenizer.encode(part)
        begin = place
        if len(name) > 1:
            yield special_id(tokenizer, name)


def _unknown_word(tokenizer: Tokenizer, text: str) -> str | None:
    return next((word for word in text.split() if tokenizer.inner.token_to_id(word) is None), None)


def _text_with_specials(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of tokens, with the names of special tokens in a form that no text has."""
    parts: list[str] = []
    held: list[int] = []
    for token in tokens:
        if token == tokenizer.eot_id:
            break
        if token in tokenizer.special_ids:
            parts += [tokenizer.decode(held), _shown_special(str(tokenizer.inner.id_to_token(token)))]
            held = []
        else:
            held.append(token)
    return "".join([*parts, tokenizer.decode(held)])


def _shown_special(name: str) -> str:
    return f"\0{name}\0"
