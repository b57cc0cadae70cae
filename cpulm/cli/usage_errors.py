"""What the parser refuses, as one message and one hint in cpulm's own style."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from cpulm.cli.parser import OLD_SPELLINGS, TYPED, command_line, is_switch, option_name, usage
from cpulm.cli.peer_flags import PEERS
from cpulm.cli.setting_flags import FLAGS
from cpulm.command import typed
from cpulm.errors import SettingsError

_NUMBERS = {"N": (int, "a whole number"), "X": (float, "a number")}


def explain(error: Any) -> SettingsError:
    """The parser's ``error`` as ours: what was typed, what is wrong with it, and what to type instead."""
    context, kind = error.ctx, type(error).__name__
    command = context.command if context is not None else None
    if context is None or command is None:
        return SettingsError(_plain(error.format_message()), "see `cpulm --help`")
    if kind == "NoSuchOption":
        return _unknown_option(error.option_name, context)
    if kind == "MissingParameter":
        return SettingsError(f"{option_name(error.param)} is missing", _example(context))
    if kind == "BadParameter" and error.param is not None:
        return _bad_value(error, context)
    if kind == "BadOptionUsage":
        return _with_or_without_value(error.option_name, context)
    if getattr(command, "commands", None):
        return _unknown_command(context, error)
    message = _plain(error.format_message())
    extra = re.search(r"extra arguments?.*\((.*)\)$", message)
    if extra:
        hint = f"the form is: {usage(command, context)}"
        if command.name == "generate":
            hint = f"text to begin with: --prompt {typed(extra[1])}"
        return SettingsError(f"{extra[1]}: too many arguments", hint)
    return SettingsError(message, _help_of(context))


def _unknown_command(context: Any, error: Any) -> SettingsError:
    typed = context.meta.get(TYPED, [])
    if not typed:
        return SettingsError(_plain(error.format_message()), "see `cpulm --help`")
    names = [name for name, one in context.command.commands.items() if not one.hidden]
    close = difflib.get_close_matches(typed[0], names, n=1)
    hint = f"did you mean `cpulm {close[0]}`?" if close else f"the commands are {', '.join(names)}"
    return SettingsError(f"there is no command {typed[0]}", hint)


def _unknown_option(typed: str, context: Any) -> SettingsError:
    name = typed.split("=")[0]
    message = (
        f"{command_line(context)} has no option {name}" if context.parent else f"there is no option {name}"
    )
    bare = name.lstrip("-").replace("_", "-").lower()
    options = _options(context.command)
    hint = ""
    for spelling in dict.fromkeys((bare, bare.rpartition(".")[2])):  # litgpt's --train.max_steps
        if f"--{spelling}" in options:
            hint = hint or f"write --{spelling}"
        elif spelling in PEERS:
            hint = hint or _ours(PEERS[spelling], context)
        hint = hint or _as_setting(spelling, context)
    hint = hint or _of_another_command(bare, context)
    if not hint:
        names = [option[2:] for option in options] if bare[1:] else []
        close = difflib.get_close_matches(bare, names, n=1, cutoff=0.7)
        hint = f"did you mean --{close[0]}?" if close else _help_of(context)
    return SettingsError(message, hint)


def _ours(place: str, context: Any) -> str:
    """How this command is given what a peer's option gives; empty if it takes no such thing."""
    options = _options(context.command)
    if place.startswith("--"):
        return f"cpulm calls it {place}" if place in options else ""
    if place == "RUN":
        takes = any(option_name(one).startswith("RUN") for one in context.command.params)
        if not takes and "--init-from" in options:
            return "a model to begin with: --init-from RUN; a run to continue: `cpulm resume RUN`"
        return f"give it as the argument RUN: `{command_line(context)} runs/tiny-1`" if takes else ""
    if place.startswith("cpulm "):
        return f"use `{place}`"
    option = next((flag.options[0].split("/")[0] for flag in FLAGS.values() if flag.key == place), "")
    if option in options:
        return f"cpulm calls it {option} (the setting {place})"
    return f"it is the setting {place}: --set {place}=VALUE" if "--set" in options else ""


def _as_setting(bare: str, context: Any) -> str:
    """The setting whose own name was typed as an option."""
    if "--set" not in _options(context.command):
        return ""
    from cpulm.settings.resolve_settings import known_keys

    name = bare.replace("-", "_")
    keys = [
        key
        for key in known_keys()
        if "." in key and name in (key, key.partition(".")[2], key.replace(".", "_"))
    ]
    return _ours(keys[0], context) if len(keys) == 1 else ""


def _of_another_command(bare: str, context: Any) -> str:
    """Which command has the option; of several `cpulm train`, else the first."""
    commands = getattr(context.find_root().command, "commands", {})
    have = [name for name, one in commands.items() if not one.hidden and f"--{bare}" in _options(one)]
    return f"it is an option of `cpulm {'train' if 'train' in have else have[0]}`" if have else ""


def _with_or_without_value(name: str, context: Any) -> SettingsError:
    parameter = _parameter(name, context)
    if parameter is None:
        return SettingsError(f"{name} cannot be used this way", _help_of(context))
    if is_switch(parameter):
        spellings = " or ".join([*parameter.opts[:1], *parameter.secondary_opts[:1]])
        return SettingsError(f"{name} takes no value", f"write {spellings} alone")
    return SettingsError(f"{name} needs a value", _meaning(parameter))


def _bad_value(error: Any, context: Any) -> SettingsError:
    parameter = error.param
    if "not readable" in error.message:
        return SettingsError(_plain(error.message), "check its permissions")
    typed = _typed_value(parameter, context)
    name = parameter.opts[0] if parameter.opts[0].startswith("-") else option_name(parameter)
    number, words = _NUMBERS.get(parameter.metavar, (str, "possible here"))
    try:
        number(typed)
    except ValueError:
        return SettingsError(f"{name} {typed}: this is not {words}", _meaning(parameter))
    least, most = _bound(parameter, "min"), _bound(parameter, "max")
    if most is not None and number(typed) > most:
        limit = f"must be at most {most}"
    else:
        limit = "is not possible here" if least is None else f"must be at least {least}"
    return SettingsError(f"{name} {typed}: this {limit}", _meaning(parameter))


def _bound(parameter: Any, name: str) -> Any:
    """The least (``min``) or the largest (``max``) value of an option; None if there is no bound."""
    own = getattr(parameter, name, None)
    return getattr(getattr(parameter, "type", None), name, None) if own is None else own


def _typed_value(parameter: Any, context: Any) -> str:
    """What was typed for ``parameter``, before it was converted."""
    values, _, _ = context.command.make_parser(context).parse_args(list(context.meta.get(TYPED, [])))
    value = values.get(parameter.name, "")
    return str(value[-1] if isinstance(value, (list, tuple)) and value else value)


def _parameter(option: str, context: Any) -> Any:
    return next((one for one in context.command.params if option in (*one.opts, *one.secondary_opts)), None)


def _options(command: Any) -> list[str]:
    """The visible options of a command, the longer spellings first."""
    return list(_spellings(command))


def _spellings(command: Any) -> Iterator[str]:
    old = OLD_SPELLINGS.get(command.name or "", {})
    for one in command.params:
        if not getattr(one, "hidden", False):
            yield from (
                each for each in (*one.opts, *one.secondary_opts) if each.startswith("--") and each not in old
            )
    yield "--help"


def _meaning(parameter: Any) -> str:
    return f"{option_name(parameter)}: {parameter.help or ''}".rstrip(": ")


def _example(context: Any) -> str:
    """The first example in a command's help."""
    lines = [line.strip() for line in inspect.cleandoc(context.command.help or "").splitlines()]
    found = next((line for line in lines if line.startswith("cpulm ")), "")
    return f"such as `{found}`" if found else _help_of(context)


def _help_of(context: Any) -> str:
    return f"see `{command_line(context)} --help`" if context.parent else "see `cpulm --help`"


def _plain(message: str) -> str:
    """The parser's own words, of which only rare complaints are left, as one line of our kind."""
    return " ".join(message.split()).rstrip(".").replace("'", "")
