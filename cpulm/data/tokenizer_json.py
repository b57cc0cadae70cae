"""Checks a ``tokenizer.json`` before the ``tokenizers`` library reads it, and translates its errors.

The library makes room for the largest id, so an id of 4,294,967,290 ends the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpulm.errors import CpulmError, DataError
from cpulm.regular_file import read_regular
from cpulm.typed_json import parse_json, shown

MOST_IDS = 1 << 24
"""The largest vocabulary."""
_MOST_BYTES = 1 << 30
_SPARSE = 4
"""Ids may have holes: the vocabulary is at most so many times as large as its tokens are many, and 1,024."""
_HINT = "give a file written by the tokenizers library"


def read_tokenizer(path: Path) -> bytes:
    """The bytes of a ``tokenizer.json``.

    Raises:
        OSError: if it cannot be read.
    """
    return read_regular(path, _MOST_BYTES)


def check_tokenizer(text: str) -> None:
    """Check the ids and the unknown token in the text of a ``tokenizer.json``.

    Raises:
        DataError: if the text is not JSON of a tokenizer, or its ids cannot be used.
    """
    try:
        parts = parse_json(text)
        if not isinstance(parts, dict):
            raise TypeError("it holds no JSON object")
        model = parts["model"]
        vocab, added = model["vocab"], parts.get("added_tokens") or []
        ids = _ids(vocab) + [_number(token["id"], token["content"]) for token in added]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"this is not a tokenizer.json: {why}", _HINT) from None
    if not vocab:
        raise DataError("this tokenizer.json has an empty vocabulary", _HINT)
    largest, most = max(ids), _SPARSE * len(ids) + 1024
    if largest >= min(most, MOST_IDS):
        raise DataError(f"its {len(ids):,} tokens have ids up to {largest:,}", "number them from 0 on")
    unknown = model.get("unk_token")
    by_words = (parts.get("pre_tokenizer") or {}).get("type") == "WhitespaceSplit"
    if model.get("type") in ("WordLevel", "WordPiece") and unknown not in vocab and not by_words:
        raise DataError(
            f"its unknown token {shown(unknown)} is not in its vocabulary", "add it to the vocabulary"
        )


def _ids(vocab: Any) -> list[int]:
    if isinstance(vocab, dict):
        return [_number(number, token) for token, number in vocab.items()]
    if not isinstance(vocab, list):
        raise TypeError("its vocabulary is neither a mapping nor a list")
    return list(range(len(vocab)))


def _number(number: Any, token: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"the id of {shown(token)} cannot be {shown(number)}")
    return number


@contextmanager
def library_errors(what: str, hint: str = _HINT) -> Iterator[None]:
    """Turn what the library raises, plain exceptions and its panics, into DataError: ``what: …``."""
    try:
        yield
    except (CpulmError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{what}: {reason}", hint) from error
