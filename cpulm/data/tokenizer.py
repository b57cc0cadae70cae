"""Text to ids and back: one class for every kind of tokenizer, each stored as one ``tokenizer.json``.

cpulm builds the kinds ``bpe`` (byte-level, trained), ``byte``, ``char`` and ``word``; a ``tokenizer.json``
made elsewhere works as well. The end-of-text token of the built kinds is the last id. Text is never
searched for special tokens: a document that contains ``<|endoftext|>`` is encoded as those thirteen
characters.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as JsonTokenizer

from cpulm.data.marks import END_OF_TEXT
from cpulm.data.splitting import EXPRESSIONS, NEW_PATTERN, splitting_pattern
from cpulm.data.tokenizer_json import check_tokenizer, library_errors, read_tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.typed_json import shown

UNKNOWN = "<unk>"
KINDS = ("bpe", "byte", "char", "word")
BYTE_LEVEL_MINIMUM = 257
"""The smallest byte-level vocabulary: 256 bytes and the end-of-text token."""

_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>", "[SEP]")
CANNOT_ENCODE = "the tokenizer cannot encode this text", "use one that can encode every text, such as byte"
_LONG_WORD = 64
_LONG_RUN = 128
"""Characters: a run of at least twice this many is cut into words of ``_LONG_WORD`` to learn a vocabulary."""
_LETTER_OR_BLANK = re.compile(r"[^\W_]|\s")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """A tokenizer with the properties that cpulm needs.

    Attributes:
        kind: ``bpe``, ``byte``, ``char`` or ``word``, derived from the tokenizer's parts; ``other`` if it
            is none of these.
        eot_id: id of the token that ends a document.
        vocab_size: the largest id plus one, the end-of-text token included.
    """

    def __init__(self, inner: JsonTokenizer) -> None:
        inner.no_padding()
        inner.no_truncation()
        if getattr(inner.model, "dropout", None):
            inner.model.dropout = None  # it would give other tokens each time
        inner.encode_special_tokens = True
        self.inner = inner
        self.eot_id = _end_of_text_id(inner)
        vocab = inner.get_vocab()
        _require_one_token_per_id(vocab)
        self.vocab_size = max(vocab.values()) + 1
        self.kind = kind_of(self.parts)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Load the text of a ``tokenizer.json`` that :meth:`to_json` or the ``tokenizers`` library wrote.

        The first of these added tokens ends a text: ``<|endoftext|>``, ``<|end_of_text|>``, ``</s>``,
        ``<eos>``, ``<|eos|>``, ``[EOS]``, ``<|im_end|>``, ``[SEP]``. If there is none, ``<|endoftext|>``
        is added as a new last id.

        Raises:
            DataError: if the text is not a tokenizer.
        """
        check_tokenizer(text)
        with library_errors("this is not a tokenizer.json"):
            return cls(JsonTokenizer.from_str(text))

    @classmethod
    def from_file(cls, path: Path | str) -> Tokenizer:
        """Load a ``tokenizer.json``.

        Raises:
            DataError: if the file is missing or is not a tokenizer.
        """
        try:
            return cls.from_json(read_tokenizer(Path(path)).decode())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read the tokenizer {path}: {getattr(error, 'strerror', None) or error}",
                f"give a tokenizer.json, or one of {', '.join(KINDS)}",
            ) from error
        except DataError as error:
            raise DataError(f"{path}: {error.message}", error.hint) from error

    def to_json(self) -> str:
        """Return the whole tokenizer as the text of a ``tokenizer.json``."""
        text: str = self.inner.to_str()
        return text

    def with_special_tokens(self, names: Sequence[str]) -> Tokenizer:
        """The same tokenizer with special tokens of these names; those that it lacks come last."""
        lacking = [name for name in names if self.inner.token_to_id(name) not in self.special_ids]
        if not lacking:
            return self
        inner = JsonTokenizer.from_str(self.to_json())
        inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in lacking])
        return Tokenizer(inner)

    def encode(self, text: str) -> list[int]:
        """Encode ``text`` to ids, without any special token.

        Raises:
            DataError: if a vocabulary lacks a character or a word and has no token for such, or the text is
                not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the text holds half a surrogate pair at character {error.start}: it is not valid Unicode",
                "give text that is valid Unicode",
            ) from error
        if self.kind == "char":
            self._check_characters(text)
        if self.kind == "word":
            self.check_words(text.split())
        with library_errors(*CANNOT_ENCODE):
            ids: list[int] = self.inner.encode(text, add_special_tokens=False).ids
        return ids

    def check_words(self, words: Iterable[str]) -> None:
        """Refuse words that the vocabulary lacks, unless it has a token for these.

        Raises:
            DataError: naming the first.
        """
        model = self.parts["model"]
        vocab = model["vocab"]
        has_token = model.get("unk_token", UNKNOWN) in vocab
        missing = None if has_token else next((word for word in words if word not in vocab), None)
        if missing is not None:
            raise DataError(
                f"the vocabulary has no word {missing!r}",
                f"add it, or {UNKNOWN} for all unknown words, to the list; or let `word` learn one",
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ``ids`` to text; special tokens, including the end of text, give none.

        Bytes that are not UTF-8 give U+FFFD.
        """
        text: str = self.inner.decode(list(ids), skip_special_tokens=True)
        return text

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The ``tokenizer.json`` as a nested dict."""
        loaded: dict[str, Any] = json.loads(self.to_json())
        return loaded

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that :meth:`decode` leaves out."""
        added = self.inner.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    @cached_property
    def begin_ids(self) -> list[int]:
        """The special tokens that programs such as transformers put before a prompt, as models of the Llama
        family want it."""
        processor = self.parts.get("post_processor") or {}
        for step in (processor, *processor.get("processors", ())):
            if step.get("type") == "TemplateProcessing":
                before = itertools.takewhile(lambda piece: "SpecialToken" in piece, step["single"])
                names = [piece["SpecialToken"]["id"] for piece in before]
                return [number for name in names for number in step["special_tokens"][name]["ids"]]
        return []

    @cached_property
    def _characters(self) -> frozenset[str]:
        return frozenset(self.parts["model"]["vocab"])

    def _check_characters(self, text: str) -> None:
        missing = sorted(set(text) - self._characters)
        if missing:
            raise DataError(
                f"the character vocabulary has no {missing[0]!r} (U+{ord(missing[0]):04X})",
                "leave that character out, or train with data.tokenizer=byte, which can encode every text",
            )


class TextStream:
    """Decodes tokens as they arrive, with correct characters across token borders.

    The concatenation of all that :meth:`push` and :meth:`flush` return equals ``decode`` of all ids. A
    character whose bytes are still incomplete is held back. The exception are decoders that rewrite text
    already shown (those of WordPiece with clean-up).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Return the text that ``token_id`` completes; empty while a character is incomplete."""
        if token_id in self._tokenizer.special_ids:
            return ""
        self._held.append(token_id)
        if _is_byte_piece(self._tokenizer, token_id):
            return ""
        text = self._text_of_held()
        return "" if not text or text.endswith(_REPLACEMENT) else self._settle(text)

    def flush(self) -> str:
        """Return what is still held back; incomplete bytes give U+FFFD."""
        return self._settle(self._text_of_held()) if self._held else ""

    def _text_of_held(self) -> str:
        """Decode together with the tokens before, because some decoders join tokens with spaces."""
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._held)[len(before) :]

    def _settle(self, text: str) -> str:
        self._context, self._held = self._held, []
        return text


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with Qwen2's splitting expression on ``texts``.

    Raises:
        SettingsError: if ``vocab_size`` is under 257.
    """
    if vocab_size < BYTE_LEVEL_MINIMUM:
        raise SettingsError(
            f"data.vocab_size = {vocab_size}: bpe needs 256 bytes and an end-of-text token",
            f"give at least that: --vocab-size {BYTE_LEVEL_MINIMUM}; or take the tokenizer byte",
        )
    inner = JsonTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(EXPRESSIONS[NEW_PATTERN]), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_without_long_words(texts), trainer)
    return _with_end_of_text(inner)


def _without_long_words(texts: Iterable[str]) -> Iterator[str]:
    """Cut long runs of one class of characters: a merge looks through the whole of each word it occurs in.

    Learning 4,096 tokens from 1 MB without borders (Chinese, DNA) took over 100 s of an AMD EPYC in words of
    1,024 characters, 6 s in words of 64.
    """
    for text in texts:
        begin = 0
        for block in range(0, len(text) - _LONG_RUN + 1, _LONG_RUN):
            if _is_one_run(text[block : block + _LONG_RUN]):
                for end in range(block, block + _LONG_RUN + 1, _LONG_WORD):
                    yield text[begin:end]
                    begin = end
        yield text[begin:]


def _is_one_run(text: str) -> bool:
    """Whether no border between words can be in ``text``: all letters, digits, white space or other signs."""
    return text.isalpha() or text.isnumeric() or text.isspace() or _LETTER_OR_BLANK.search(text) is None


def byte_tokenizer() -> Tokenizer:
    """Build the byte tokenizer: a byte's id is its value; id 256 ends a text."""
    vocab = {letter: value for value, letter in enumerate(byte_letters())}
    inner = JsonTokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return _with_end_of_text(inner)


def char_tokenizer(characters: Iterable[str]) -> Tokenizer:
    """Build a tokenizer with every character of ``characters``, in sorted order, as a token."""
    vocab = {character: number for number, character in enumerate(sorted(set(characters)))}
    inner = JsonTokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.decoder = decoders.Fuse()
    return _with_end_of_text(inner)


def train_word(texts: Iterable[str], vocab_size: int | None, reserved: Sequence[str] = ()) -> Tokenizer:
    """Build a vocabulary of the most frequent words between white space; id 0, ``<unk>``, is all others.

    White space is not kept: decoding puts one space between words. Words that are the names of ``reserved``
    special tokens are among all others.

    Raises:
        SettingsError: if ``vocab_size`` is under 3.
        DataError: if a size is given and the texts have no words.
    """
    if vocab_size is not None and vocab_size < 3:
        raise SettingsError(
            f"data.vocab_size = {vocab_size}: word needs <unk>, an end-of-text token and a word",
            "give at least that: --vocab-size 3",
        )
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
    for name in (UNKNOWN, END_OF_TEXT, *reserved):
        del counts[name]
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    if vocab_size is not None and not ranked:
        raise DataError("the text has no words", "give more text, or another --tokenizer")
    kept = ranked if vocab_size is None else ranked[: vocab_size - 2]
    vocab = {UNKNOWN: 0, **{word: number for number, word in enumerate(kept, start=1)}}
    inner = JsonTokenizer(models.WordLevel(vocab=vocab, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _with_end_of_text(inner)


def kind_of(parts: dict[str, Any]) -> str:
    """Derive the kind of a ``tokenizer.json`` from its model, its merges and its splitting."""
    model, splitter, vocab = parts["model"], parts.get("pre_tokenizer") or {}, parts["model"]["vocab"]
    plain = parts.get("normalizer") is None and all(token["special"] for token in parts["added_tokens"])
    if model["type"] == "WordLevel":
        return "word" if plain and splitter.get("type") == "WhitespaceSplit" else "other"
    if model["type"] != "BPE":
        return "other"
    if model["merges"]:
        return "bpe" if is_byte_level(parts) else "other"
    if not splitter:
        return "char" if plain and max(map(len, vocab), default=1) == 1 else "other"
    if splitting_pattern(parts) is not None:
        return "bpe"
    if splitter.get("type") != "ByteLevel":
        return "other"
    if splitter.get("use_regex", True):
        return "bpe"
    return (
        "byte"
        if plain and not splitter.get("add_prefix_space") and vocab.keys() >= set(byte_letters())
        else "other"
    )


def is_byte_level(parts: dict[str, Any]) -> bool:
    """Whether the pieces of a ``tokenizer.json`` stand for bytes; those of SentencePiece are text."""
    decoder = parts.get("decoder") or {}
    return "ByteLevel" in (step.get("type") for step in (decoder, *decoder.get("decoders", ())))


def byte_letters() -> list[str]:
    """The printable character that represents each byte in byte-level vocabularies.

    As in GPT-2's ``bytes_to_unicode``: printable Latin-1 characters represent themselves; the other bytes
    are represented by the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare: Iterator[int] = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _require_one_token_per_id(vocab: dict[str, int]) -> None:
    """Raise DataError if two tokens have one id: text would turn into other text, or end."""
    tokens = {number: token for token, number in vocab.items()}
    for token, number in vocab.items():
        if tokens[number] != token:
            raise DataError(
                f"this tokenizer gives the id {number:,} to {shown(token)} and to {shown(tokens[number])}",
                "number the tokens from 0 on, without holes",
            )


def _with_end_of_text(inner: JsonTokenizer) -> Tokenizer:
    inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return Tokenizer(inner)


def _end_of_text_id(inner: JsonTokenizer) -> int:
    added = {token.content: number for number, token in inner.get_added_tokens_decoder().items()}
    for name in _END_NAMES:
        if name in added:
            return int(added[name])
    inner.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return int(inner.get_vocab()[END_OF_TEXT])


def _is_byte_piece(tokenizer: Tokenizer, token_id: int) -> bool:
    """Whether the token is ``<0xE2>`` or the like: a byte that later bytes may complete."""
    if not tokenizer.parts["model"].get("byte_fallback"):
        return False
    piece = tokenizer.inner.id_to_token(token_id) or ""
    return len(piece) == 6 and piece.startswith("<0x")
