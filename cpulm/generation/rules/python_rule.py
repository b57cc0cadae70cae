"""Rules that are a Python function: it is given what is written so far, and says what may follow."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpulm.cache_dir import expand_home
from cpulm.data.marks import END_OF_TEXT
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import SettingsError
from cpulm.generation.rules.rule import Logits
from cpulm.generation.rules.token_texts import token_texts

_EXAMPLE = "such as --rules rules.py:allowed"


@dataclass(frozen=True)
class Written:
    """What a rule's function is given.

    Attributes:
        tokens: the texts of the tokens after the prompt, of words without the space between.
        text: the same as one text.
        fields: the values of the fields that were given.
        end: what to return among the others if the text may end.
    """

    tokens: tuple[str, ...]
    text: str
    fields: Mapping[str, str]
    end: str = END_OF_TEXT


Function = Callable[[Written], Iterable[str] | None]
"""Returns the texts that may follow, or None if all may. With a vocabulary of words they are words; else a
token may come next if one of these texts begins with it, and the function is asked again after it."""


def load_function(place: str) -> Function:
    """Load ``FILE.py:FUNCTION``.

    Raises:
        SettingsError: if there is no such file or function, or the file raises.
    """
    name, _, function = place.rpartition(":")
    path = expand_home(name)
    if not name or not function.isidentifier():
        raise SettingsError(f"--rules {place} names no function", _EXAMPLE)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot read the rules in {path}: {reason}", _EXAMPLE) from error
    space: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(source, str(path), "exec"), space)
    except Exception as error:
        raise SettingsError(_raised(path, "", error), "mend the file") from error
    if not callable(space.get(function)):
        raise SettingsError(f"{path} has no function {function}", _EXAMPLE)
    return space[function]  # type: ignore[no-any-return]


class PythonRule:
    """A function of the user's, asked before every token of every text.

    Args:
        place: ``FILE.py:FUNCTION``.
        fields: the values of the fields that were given.
        count: the number of texts.

    Raises:
        SettingsError: as :func:`load_function`; later, if the function raises or does not return texts.
    """

    def __init__(self, tokenizer: Tokenizer, place: str, fields: Mapping[str, str], count: int) -> None:
        self.name = f"--rules {place}"
        self._function, self._fields = load_function(place), fields
        self._path = Path(place.rpartition(":")[0])
        self._of_words = tokenizer.kind == "word"
        self._texts = token_texts(tokenizer)
        self._ids: dict[str, list[int]] = {}
        for number, text in enumerate(self._texts):
            if text:
                self._ids.setdefault(text, []).append(number)
        self._eot_id = tokenizer.eot_id
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._known: dict[frozenset[str], npt.NDArray[np.bool_]] = {}

    def restrict(self, logits: Logits, rows: Sequence[int]) -> None:
        """See :class:`cpulm.generation.rules.rule.TokenRule`."""
        for row in rows:
            tokens = tuple(self._texts[token] for token in self._tokens[row])
            written = Written(tokens, (" " if self._of_words else "").join(tokens), self._fields)
            forbidden = self._asked(written)
            if forbidden is not None:
                logits[row, forbidden] = -np.inf

    def push(self, row: int, token: int) -> None:
        """See :class:`cpulm.generation.rules.rule.TokenRule`."""
        self._tokens[row].append(token)

    def _asked(self, written: Written) -> npt.NDArray[np.bool_] | None:
        try:
            answer = self._function(written)
            # A generator runs only here.
            found = frozenset(answer) if isinstance(answer, Iterable) else None
        except Exception as error:
            raise SettingsError(
                _raised(self._path, f" after {written.text!r}", error), "mend the rule"
            ) from error
        if answer is None:
            return None
        if found is None or isinstance(answer, str) or not all(isinstance(text, str) for text in found):
            raise SettingsError(
                f"{self.name} returned {answer!r:.60}, not a set of texts after {written.text!r}",
                "return the texts that may follow, or None if all may",
            )
        if found not in self._known:
            self._known[found] = self._all_but(found)
        return self._known[found]

    def _all_but(self, texts: Iterable[str]) -> npt.NDArray[np.bool_]:
        forbidden = np.ones(len(self._texts), dtype=bool)
        for text in texts:
            if text == END_OF_TEXT:
                forbidden[self._eot_id] = False
                continue
            for part in (text,) if self._of_words else (text[:end] for end in range(1, len(text) + 1)):
                forbidden[self._ids.get(part, [])] = False
        return forbidden


def _raised(path: Path, when: str, error: Exception) -> str:
    """What an exception of the user's code says, with its line."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    at = f", line {line}," if line else ""
    return f"{path}{at} raised {type(error).__name__}: {error}{when}"
