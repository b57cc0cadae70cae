"""Regular expressions, Lark grammars and JSON schemas, enforced by the library ``llguidance``.

It knows byte-level vocabularies. Characters and words are given to it as such: the single bytes that a
vocabulary lacks come behind it and are cut from the masks again. A word stands there twice: as it is at the
beginning of a text and with the space before it as it is later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cpulm.data.extras import library
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import SettingsError
from cpulm.generation.rules.rule import Logits
from cpulm.generation.rules.token_texts import token_bytes

_OF_BYTES = np.zeros((256, 8), dtype=np.float32)
"""What each byte of a mask adds to the logits of its eight tokens: 0 or -inf. The lowest bit is the first."""
_OF_BYTES[np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 0] = -np.inf


class _Vocabulary:
    """The vocabulary in the form that llguidance asks for."""

    bos_token_id = None
    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, texts: list[bytes], end_id: int) -> None:
        self.eos_token_id = end_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = list(texts)
        self.starts_at = 0
        if tokenizer.kind == "word":
            self.starts_at = len(texts)
            self.tokens = [*(b" " + text if text else text for text in texts), *texts]
        for number in self.special_token_ids:
            self.tokens[number] = str(tokenizer.inner.id_to_token(number)).encode()
        there = set(self.tokens)
        self.tokens += [bytes([byte]) for byte in range(256) if bytes([byte]) not in there]
        # Each needs a name of its own, which no text has.
        self.tokens = [text or b"\xff<%d>" % number for number, text in enumerate(self.tokens)]
        self._by_text = {text: number for number, text in enumerate(self.tokens)}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: str | bytes) -> list[int]:
        """The longest tokens that a text begins with; every byte is one, so that nothing can fail.

        An encoder that raises would end the process. Where a grammar allows one text only, these tokens are
        the ones that are allowed.
        """
        data, ids, begin = text.encode() if isinstance(text, str) else bytes(text), [], 0
        while begin < len(data):
            sizes = range(min(self._longest, len(data) - begin), 0, -1)
            size = next(size for size in sizes if data[begin : begin + size] in self._by_text)
            ids.append(self._by_text[data[begin : begin + size]])
            begin += size
        return ids


class GrammarRule:
    """A grammar that each text obeys as a whole.

    Args:
        name: what the user gave, for messages.
        grammar: as :func:`regex_grammar` and the other functions here return it.
        count: the number of texts.
        end_id: the token that ends a text; None: the end-of-text token.

    Raises:
        SettingsError: if the library is not installed, or the grammar cannot be used.
    """

    def __init__(
        self, tokenizer: Tokenizer, name: str, grammar: str, count: int, end_id: int | None = None
    ) -> None:
        llguidance = _llguidance()
        self.name = name
        self._starts_at, self._vocab_size = 0, tokenizer.vocab_size
        ends = tokenizer.eot_id if end_id is None else end_id
        texts = token_bytes(tokenizer)
        if texts is None:
            # The eos token of the library may be another one than ours.
            vocabulary = llguidance.LLTokenizer(tokenizer.to_json(), eos_token=ends)
        else:
            wrapped = _Vocabulary(tokenizer, texts, ends)
            self._starts_at = wrapped.starts_at
            vocabulary = llguidance.LLTokenizer(wrapped)
        matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0)
        _require_usable(name, matcher)
        words = -(-max(vocabulary.vocab_size, tokenizer.vocab_size) // 32)
        self._bits = np.zeros((count, 4 * words), dtype=np.uint8)
        self._added = np.zeros((count, 32 * words), dtype=np.float32)
        self._address, self._row_bytes = self._bits.ctypes.data, 4 * words
        matcher.unsafe_compute_mask_ptr(self._address, self._row_bytes)  # copies take over what it has learnt
        self._matchers = [matcher, *(matcher.deep_copy() for _ in range(count - 1))]
        self._begun = [False] * count

    def restrict(self, logits: Logits, rows: Sequence[int]) -> None:
        """See :class:`cpulm.generation.rules.rule.TokenRule`."""
        # One after the other: the library's threads wait for cores that other programs use.
        for row in rows:
            matcher = self._matchers[row]
            matcher.unsafe_compute_mask_ptr(self._address + row * self._row_bytes, self._row_bytes)
            if matcher.is_error():
                _require_usable(self.name, matcher)
        # A table for bytes instead of bools for tokens: 3 us instead of 17 for a vocabulary of 4,096.
        added = self._added
        _OF_BYTES.take(self._bits, axis=0, out=added.reshape(*self._bits.shape, 8), mode="clip")
        if self._starts_at and not all(self._begun):
            for row in rows:
                if not self._begun[row]:
                    first = added[row, self._starts_at : self._starts_at + self._vocab_size]
                    added[row, : self._vocab_size] = np.maximum(added[row, : self._vocab_size], first)
        logits += added[:, : self._vocab_size]

    def push(self, row: int, token: int) -> None:
        """See :class:`cpulm.generation.rules.rule.TokenRule`."""
        matcher, begun = self._matchers[row], self._begun[row]
        self._begun[row] = True
        if self._starts_at and not begun and matcher.validate_tokens([self._starts_at + token]):
            token += self._starts_at
        matcher.consume_token(token)


def regex_grammar(regex: str) -> str:
    """The grammar of a regular expression that the whole text matches."""
    return str(_llguidance().LLMatcher.grammar_from_regex(regex))


def lark_grammar(text: str) -> str:
    """The grammar of a text in Lark's syntax, from its rule ``start`` on."""
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def json_grammar(schema: str, name: str) -> str:
    """The grammar of JSON that a JSON schema describes.

    Raises:
        SettingsError: if the schema is not JSON.
    """
    try:
        json.loads(schema)
    except ValueError as error:
        raise SettingsError(f"{name} is not JSON: {error}", "give a JSON schema") from error
    return str(_llguidance().LLMatcher.grammar_from_json_schema(schema))


def after(literal: str, grammar: str) -> str:
    """The grammar of ``literal`` followed by what ``grammar`` describes."""
    if not literal:
        return grammar
    (body,) = json.loads(grammar)["grammars"]
    head = {"lark_grammar": f"start: {json.dumps(literal)} @body"}
    return json.dumps({"grammars": [head, {**body, "name": "body"}]})


def _llguidance() -> Any:
    return library("llguidance", what="a rule of this kind", package="llguidance", extra="rules")


def _require_usable(name: str, matcher: Any) -> None:
    if matcher.is_error():
        lines = matcher.get_error().strip().splitlines() or ["it is too complex"]
        # A regular expression's own error ends with a line that says what is wrong with it.
        reason = next((line[len("error: ") :] for line in lines if line.startswith("error: ")), lines[0])
        hint = "https://github.com/guidance-ai/llguidance says what it may hold"
        raise SettingsError(f"{name} cannot be used: {reason}", hint)
