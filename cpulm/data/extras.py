"""Libraries that only some formats need, and that are installed with an extra of cpulm."""

from __future__ import annotations

import importlib
from typing import Any

from cpulm.errors import SettingsError


def library(*names: str, what: str, package: str, extra: str) -> Any:
    """Return the first of the modules ``names`` that is installed.

    Args:
        what: what needs it, for the message.
        package: its name for people.
        extra: the extra of cpulm that installs it.

    Raises:
        SettingsError: if none is installed, with the command that installs it.
    """
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise SettingsError(f"{what} needs the library {package}", f"install it: pip install 'cpulm[{extra}]'")
