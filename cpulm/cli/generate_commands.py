"""What `generate --interactive` understands beside prompts: /set, /help, /bye."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cpulm.errors import SettingsError

if TYPE_CHECKING:
    from cpulm.generation.sampling import Sampling

HELP = """Begin a text and press Enter; the model continues it. Ctrl-C stops the model.
  /set temperature 0.7   also top_k, top_p, min_p ("off" unsets these), repetition_penalty, max_new_tokens
  /help                  this list
  /bye                   exit, as Ctrl-D or an empty line does
A text that begins with a slash: write two."""

_WHOLE = ("top_k", "max_new_tokens")
_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
_OPTIONAL = ("top_k", "top_p", "min_p")


def with_setting(sampling: Sampling, max_new_tokens: int, words: list[str]) -> tuple[Sampling, int]:
    """``sampling`` and ``max_new_tokens`` after ``/set NAME VALUE``, given as its words.

    Raises:
        SettingsError: if there is no such setting, or the value does not fit.
    """
    name, value = words if len(words) == 2 else ("", "")
    name = name.replace("-", "_")
    if name not in _SETTINGS:
        raise SettingsError("/set takes a name and a value", f"names: {', '.join(_SETTINGS)}")
    number: float | None = None
    if not (value == "off" and name in _OPTIONAL):
        try:
            number = int(value) if name in _WHOLE else float(value)
        except ValueError:
            raise SettingsError(
                f"{name} = {value!r} is not a number", "such as /set temperature 0.7"
            ) from None
    if name != "max_new_tokens":
        change: dict[str, Any] = {name: number}
        return replace(sampling, **change), max_new_tokens
    if number is None or number < 1:
        raise SettingsError(f"max_new_tokens = {value} must be 1 or more", "such as /set max_new_tokens 200")
    return sampling, int(number)
