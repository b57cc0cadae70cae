"""Hints that show how to change a setting; ``train`` and ``tokenize`` raise the same errors."""

from __future__ import annotations


def option(name: str, value: object) -> str:
    """``--set data.field=body (cpulm tokenize: --field body)`` for the setting ``field``."""
    return f"--set data.{name}={value} (cpulm tokenize: --{name.replace('_', '-')} {value})"
