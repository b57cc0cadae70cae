"""A vocabulary that the user gives: a text file with one word per line.

A line ``<|name|>`` is a special token: text is never searched for it, and decoding leaves it out. A line
``<unk>`` is the token of all words that are not in the list; without it, such a word is an error.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as JsonTokenizer

from cpulm.data.tokenizer import UNKNOWN, Tokenizer
from cpulm.data.tokenizer_json import read_tokenizer
from cpulm.errors import DataError

SUFFIX = ".txt"

_SPECIAL = re.compile(r"<\|.+\|>")


def word_list_tokenizer(path: Path) -> Tokenizer:
    """Make the tokenizer of a list: words have the ids of their order, the special tokens those after them.

    Raises:
        DataError: if the file cannot be read, holds no words, a word twice, or white space within one.
    """
    try:
        lines = read_tokenizer(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(
            f"cannot read the vocabulary {path}: {reason}", "give a text file with one word per line"
        ) from error
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        word = line.strip()
        if not word:
            continue
        if word.split() != [word]:
            raise DataError(f"{path}, line {number}: {word!r} holds white space", "write one word per line")
        if word in first:
            raise DataError(
                f"{path}, line {number}: {word!r} is in line {first[word]} too", "keep one of them"
            )
        first[word] = number
    words = [word for word in first if not _SPECIAL.fullmatch(word)]
    if not set(words) - {UNKNOWN}:
        raise DataError(f"{path} holds no words", "write one per line")
    vocab = {word: number for number, word in enumerate(words)}
    inner = JsonTokenizer(models.WordLevel(vocab=vocab, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [AddedToken(word, special=True, normalized=False) for word in first if word not in vocab]
    inner.add_special_tokens(special)
    return Tokenizer(inner)
