"""``--precision`` of the commands that accept only some precisions."""

from __future__ import annotations

import dataclasses

from cpulm.cli import completion
from cpulm.cli.setting_flag import SettingFlag
from cpulm.cli.setting_flags import FLAGS


def precision(words: tuple[str, ...], default: str) -> SettingFlag:
    """The option for the precisions ``words``."""
    *others, last = words
    return dataclasses.replace(
        FLAGS["precision"],
        help=f"{', '.join(others)} or {last}. [default: {default}]",
        complete=completion.words(words),
    )


WRITING = ("device", "threads", precision(("auto", "fp32", "int8"), "auto"))
"""Options of the machine for commands that write text."""
