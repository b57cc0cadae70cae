"""A named option for a setting: how it is spelled, what help says, and how its value is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class SettingFlag:
    """One option that sets one setting.

    Attributes:
        key: the setting, with a dot: ``train.lr``.
        options: its spellings, ``--lr``; of a switch ``--nice/--no-nice``.
        metavar: what stands for its value in help; empty for a switch.
        help: one sentence, with the default.
        many: may be given several times.
        convert: from the text (of a switch: the bool) to the value; by default as ``--set`` reads it.
        complete: values that begin with what was typed.
    """

    key: str
    options: tuple[str, ...]
    metavar: str
    help: str
    many: bool = False
    convert: Callable[[Any], Any] | None = None
    complete: Callable[[str], list[str]] | None = None

    @property
    def name(self) -> str:
        """The name of its parameter: that of its first spelling."""
        return self.options[0].split("/")[0].lstrip("-").replace("-", "_")

    def parameter(self, panel: str) -> inspect.Parameter:
        """The parameter that a command takes it by."""
        info = typer.Option(
            *self.options,
            help=self.help,
            metavar=self.metavar or None,
            rich_help_panel=panel,
            show_default=False,
            autocompletion=self.complete,
        )
        kind: Any = list[str] if self.many else str if self.metavar else bool
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
        )

    def is_given(self, value: Any) -> bool:
        """Whether ``value``, as the parser has it, comes from the command line."""
        has_no = any("/" in option for option in self.options)
        return bool(value) if self.many or not (self.metavar or has_no) else value is not None

    def value(self, given: Any) -> Any:
        """What was given on the command line, as the setting's value."""
        if self.convert is not None:
            return self.convert(given)
        if self.many or not self.metavar:
            return given
        from cpulm.settings.resolve_settings import parse_value

        return parse_value(given, self.key)
