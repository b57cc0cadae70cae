"""Makes the rules that were asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cpulm.data.marked_text import special_id
from cpulm.data.records.template import Placeholder, SpecialToken
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import SettingsError
from cpulm.generation.records import RecordPrompt
from cpulm.generation.rules import grammar
from cpulm.generation.rules.items import ItemLimits, ItemRule
from cpulm.generation.rules.python_rule import PythonRule
from cpulm.generation.rules.rule import RuleSet, TokenRule
from cpulm.regular_file import read_named

_MOST_BYTES = 1 << 24
_Counts = tuple[int, int | None]


@dataclass(frozen=True)
class RulesRequest:
    """The rules of a generation.

    Attributes:
        regex: the whole text matches it.
        grammar: the path of a grammar in Lark's syntax.
        json_schema: the path of a JSON schema.
        values: by field, what it may be.
        unique: fields whose items are all different.
        counts: by field, least and most items; None: any number.
        functions: each ``FILE.py:FUNCTION``.
    """

    regex: str | None = None
    grammar: Path | None = None
    json_schema: Path | None = None
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unique: Sequence[str] = ()
    counts: Mapping[str, _Counts] = field(default_factory=dict)
    functions: Sequence[str] = ()


def build_rules(
    tokenizer: Tokenizer, asked: RulesRequest, record: RecordPrompt | None, count: int
) -> RuleSet | None:
    """The rules for ``count`` texts; None if there are none.

    Args:
        record: the beginning of the record that is to be written, if it is one. Expressions and grammars then
            begin after the text that the template has between the prompt and the next field.

    Raises:
        SettingsError: if a rule cannot be used.
    """
    literal = _as_tokens_have_it(tokenizer, record.literal) if record is not None else ""
    rules: list[TokenRule] = []

    def add(name: str, body: str, *, whole: bool = False) -> None:
        whole_body = body if whole else grammar.after(literal, body)
        rules.append(grammar.GrammarRule(tokenizer, name, whole_body, count))

    if asked.regex is not None:
        add(f"--regex {asked.regex}", grammar.regex_grammar(asked.regex))
    if asked.grammar is not None:
        add(f"--grammar {asked.grammar}", grammar.lark_grammar(_read(asked.grammar)))
    if asked.json_schema is not None:
        name = f"--json-schema {asked.json_schema}"
        add(name, grammar.json_grammar(_read(asked.json_schema), name))
    if asked.values:
        name = "--values " + " ".join(f"{key}={','.join(values)}" for key, values in asked.values.items())
        add(name, _values_grammar(tokenizer, asked.values, _require_record(record, "--values")), whole=True)
    for column in dict.fromkeys([*asked.unique, *asked.counts]):
        rules.append(_item_rule(tokenizer, asked, column, record, count))
    given = record.given if record is not None else {}
    rules += [PythonRule(tokenizer, place, given, count) for place in asked.functions]
    return RuleSet(rules) if rules else None


def _values_grammar(tokenizer: Tokenizer, values: Mapping[str, Sequence[str]], record: RecordPrompt) -> str:
    """The grammar of what is to be written of a record."""
    parts, used = [""], set()
    for part in record.rest:
        if isinstance(part, SpecialToken):
            parts += [f"<[{special_id(tokenizer, part.name)}]>", ""]
        elif isinstance(part, str):
            parts[-1] += re.escape(_as_tokens_have_it(tokenizer, part))
        elif part.column in values:
            used.add(part.column)
            parts[-1] += f"({'|'.join(map(re.escape, values[part.column]))})"
        else:
            parts[-1] += "(?s:.*)"
    for name in values:
        if name not in used:
            raise SettingsError(
                f"--values {name}: this field is not written",
                "name one that is in the template and not given",
            )
    if len(parts) == 1:
        return grammar.regex_grammar(parts[0])
    words = [
        part if number % 2 else f"/{part.replace('/', chr(92) + '/')}/"
        for number, part in enumerate(parts)
        if part
    ]
    return grammar.lark_grammar(f"start: {' '.join(words)}")


def _item_rule(
    tokenizer: Tokenizer, asked: RulesRequest, column: str, record: RecordPrompt | None, count: int
) -> ItemRule:
    option = f"--unique {column}" if column in asked.unique else f"--count {column}"
    rest = [part for part in _require_record(record, option).rest if part != ""]
    place = rest[-1] if rest else None
    if not isinstance(place, Placeholder) or place.column != column:
        raise SettingsError(
            f"{option}: a record does not end with this field", "name the template's last field"
        )
    if any(not isinstance(part, str) for part in rest[:-1]):
        raise SettingsError(f"{option}: a field before it is not given", "give all fields before it: --field")
    least, most = asked.counts.get(column, (0, None))
    limits = ItemLimits(unique=column in asked.unique, least=least, most=most)
    if place.items is not None:
        limits = limits._replace(separator=place.items.separator or " ", words=place.items.words)
    assert record is not None
    return ItemRule(tokenizer, option, limits, record.literal, count)


def _require_record(record: RecordPrompt | None, option: str) -> RecordPrompt:
    if record is None:
        raise SettingsError(
            f"{option} is about a field of a record", "it needs a model of rows, and no --prompt"
        )
    return record


def _as_tokens_have_it(tokenizer: Tokenizer, literal: str) -> str:
    """Literal text of a template as the tokens give it back: between words there is one space."""
    return re.sub(r"\s+", " ", literal) if tokenizer.kind == "word" else literal


def _read(path: Path) -> str:
    try:
        return read_named(path, _MOST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingsError(f"cannot read the rule {path}: {reason}", "give a text file") from error
