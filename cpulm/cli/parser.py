"""How cpulm's commands are parsed beyond typer: their help, and old spellings of options."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cpulm.cli.setting_flags import (
    COMMON,
    FILES,
    HOW_LONG,
    LEARNING,
    MACHINE,
    MODEL,
    OUTPUT,
    PROCESSES,
    TEXT,
)
from cpulm.errors import AbortedError
from cpulm.interrupts import ABORTED

PANELS = (COMMON, TEXT, HOW_LONG, MODEL, LEARNING, MACHINE, FILES)
"""These come first, in this order; then the others as the command has them, and at the end the output."""

OLD_SPELLINGS = {
    "analyze": {"--text": "--data"},
    "benchmark": {"--time": "--max-time", "--plan": "--config"},
    "evaluate": {"--samples": "--num-samples"},
    "sweep": {"--random-seed": "--seed", "--plan": "--config"},
    "train": {"--plan": "--config"},
}
"""Options by the names that they had before, which still work and are in no help."""

EXPLAINED_BY = {FILES: "cpulm tokenize --help", PROCESSES: "docs/distributed.md"}
"""Panels that one command explains; the others list their options."""

UsageError: Any = typer.BadParameter.__base__  # its place in typer differs by version

TYPED = "cpulm.typed"
"""Where a command's context keeps the words that were typed behind the command."""


class Command(TyperCommand):
    """A subcommand."""

    def __init__(self, name: str | None, **how: Any) -> None:
        super().__init__(name, **how)
        by_option = {option: one for one in self.params for option in one.opts}
        for old, new in OLD_SPELLINGS.get(name or "", {}).items():
            alias: Any = copy.copy(
                by_option[new]
            )  # it has the same name, so its value goes to the same place
            alias.opts, alias.secondary_opts = [old], []
            alias.hidden = True
            self.params.append(alias)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = list(args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            error.ctx = error.ctx or ctx  # not every complaint of the parser has it
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        _show_help(self, ctx)


class Commands(TyperGroup):
    """``cpulm`` itself."""

    def make_context(self, *about: Any, **more: Any) -> Any:
        with _said():
            return super().make_context(*about, **more)

    def invoke(self, ctx: Any) -> Any:
        with _said():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        ctx.meta[TYPED] = list(args)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        _show_help(self, ctx)


@contextmanager
def _said() -> Iterator[None]:
    """Ctrl-C in the block is an error with a message; typer would end with the right code, but no word."""
    try:
        yield
    except KeyboardInterrupt:
        raise AbortedError(ABORTED) from None


class CommandWithOthers(Commands):
    """A command with subcommands; without the name of one of them it is the hidden one called ``list``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["list", *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == "list" else name, command, rest


def command_line(ctx: Any) -> str:
    """``cpulm watch``, ``cpulm runs rm``: the command as it is typed."""
    names: list[str] = []
    while ctx.parent is not None:
        names.insert(0, ctx.info_name)
        ctx = ctx.parent
    return " ".join(filter(None, ["cpulm", *names]))


def option_name(parameter: Any) -> str:
    """``--lr X``, ``--[no-]nice`` or ``RUN...`` as help shows it."""
    if not parameter.opts[0].startswith("-"):
        return str(parameter.metavar or parameter.name.upper())
    spellings = ", ".join(sorted(parameter.opts, key=lambda one: not one.startswith("--")))
    name = spellings.replace("--", "--[no-]", 1) if parameter.secondary_opts else spellings
    return name if is_switch(parameter) else f"{name} {parameter.metavar or 'VALUE'}"


def is_switch(parameter: Any) -> bool:
    """Whether an option takes no value."""
    return bool(getattr(parameter, "is_flag", False))


def usage(command: Any, ctx: Any) -> str:
    """``cpulm watch RUN [OPTIONS]``."""
    if ctx.parent is None:
        return "cpulm COMMAND [ARGUMENTS]"
    arguments = [one for one in command.params if not one.opts[0].startswith("-")]
    names = [option_name(one) if one.required else f"[{option_name(one)}]" for one in arguments]
    return " ".join([command_line(ctx), *names, "[OPTIONS]"])


def _show_help(command: Any, ctx: Any) -> None:
    from cpulm.ui.console import stdout
    from cpulm.ui.help import HelpPanel, HelpRow, help_page

    panels: dict[str, list[HelpRow]] = {}
    for name, one in getattr(command, "commands", {}).items():
        if not one.hidden:
            first = inspect.cleandoc(one.help or "").split("\n\n")[0].replace("\n", " ")
            panels.setdefault(str(one.rich_help_panel or "Commands"), []).append(HelpRow(name, first))
    for one in command.get_params(ctx):
        if not getattr(one, "hidden", False):
            panel = getattr(one, "rich_help_panel", None) or (
                OUTPUT if one.opts[0].startswith("-") else COMMON
            )
            panels.setdefault(panel, []).append(HelpRow(option_name(one), one.help or ""))
    order = [*(name for name in PANELS if name in panels), *(name for name in panels if name not in PANELS)]
    order.sort(key=lambda name: name == OUTPUT)
    console = stdout()
    about = inspect.cleandoc(command.help or "")
    shown = []
    for name in order:
        other = EXPLAINED_BY.get(name)
        if other is None or other == f"{command_line(ctx)} --help":
            shown.append(HelpPanel(name, panels[name]))
        else:
            words = [word.strip(",") for row in panels[name] for word in row.name.split()]
            names = ", ".join(word for word in words if word.startswith("--"))
            shown.append(HelpPanel(f"{name} (explained by {other})", [], names))
    page = help_page(usage(command, ctx), about, shown, console.width)
    console.print(page, soft_wrap=True)
