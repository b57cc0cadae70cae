"""The name and the note that a run's owner gave it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cpulm.atomic import write_text
from cpulm.errors import SettingsError
from cpulm.regular_file import open_regular
from cpulm.run_dir import RunDir
from cpulm.typed_json import from_record, parse_json

LONGEST_NAME, LONGEST_NOTE = 60, 1000
"""Characters."""
_MOST_BYTES = 65_536


@dataclass(frozen=True)
class Label:
    """What a run's owner says of it; nothing in a run depends on it."""

    name: str = ""
    note: str = ""


def read_label(run: RunDir) -> Label:
    """The run's label; an empty one if there is none or its file is damaged."""
    try:
        with open_regular(run.label) as file:
            label = from_record(Label, parse_json(file.read(_MOST_BYTES)))
    except (OSError, ValueError):
        return Label()
    return Label(label.name[:LONGEST_NAME], label.note[:LONGEST_NOTE])


def write_label(run: RunDir, label: Label) -> None:
    """Store the run's label.

    Raises:
        SettingsError: if the name or the note is too long, or the name has several lines.
        ResourceError: if the disk is full.
    """
    if len(label.name) > LONGEST_NAME or len(label.name.splitlines()) > 1:
        raise SettingsError("the name is too long", f"give one line of at most {LONGEST_NAME} characters")
    if len(label.note) > LONGEST_NOTE:
        raise SettingsError("the note is too long", f"give at most {LONGEST_NOTE} characters")
    write_text(run.label, json.dumps(label.__dict__) + "\n")
