"""What ``analyze --model`` does: read a text, and inspect the model on it."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cpulm.errors import DataError, SettingsError
from cpulm.regular_file import open_named

if TYPE_CHECKING:
    from cpulm.analysis.report import Report
    from cpulm.inspection.model_report import ModelReport

MOST_TEXT_BYTES = 4 << 20
"""Only the beginning of a longer text is read: the inspection uses some ten thousand tokens."""


def require_model(*, model: bool, text: Path | None, prompt: str | None, words: Sequence[str] | None) -> None:
    """Raises SettingsError if an option is given that only ``--model`` uses."""
    given = {"--data": text is not None, "--prompt": prompt is not None, "--word": bool(words)}
    names = [name for name, is_given in given.items() if is_given]
    if names and not model:
        raise SettingsError(f"{' and '.join(names)} has no effect without --model", "add --model")


def require_one(runs: Sequence[Path], reports: Sequence[Report], *, pages: bool) -> None:
    """Raises SettingsError if ``--model`` is given with several runs, or a page without a run."""
    if len(reports) > 1:
        raise SettingsError("--model inspects one model", "give one run, or one checkpoint")
    if pages and not reports:
        raise SettingsError(
            f"{runs[0]} is a checkpoint, and --html and --png need a run's log", "give the run's folder"
        )


def look(
    path: Path, text: Path | None, prompt: str | None, words: Sequence[str] | None, *, quiet: bool
) -> ModelReport:
    """Inspect the model of a run or a checkpoint, with progress on stderr.

    Args:
        text: a file of text, ``-`` for stdin; None for the validation set.
        quiet: no progress.

    Raises:
        CpulmError: if there is no model or no text, or a word is not a token.
    """
    content = None if text is None else _read(text)

    from cpulm.execution.runtime import choose_runtime
    from cpulm.inspection.inspect_model import InspectionRequest, inspect_model
    from cpulm.settings import RuntimeSettings
    from cpulm.system.machine import read_machine
    from cpulm.ui.console import show_warning
    from cpulm.ui.watch import choose_mode, watch

    # For torch's threads and denormals; the model is inspected on the CPU, in fp32.
    choose_runtime(RuntimeSettings(device="cpu", precision="fp32"), read_machine())
    shown = InspectionRequest(content, "stdin" if str(text) == "-" else str(text), prompt, tuple(words or ()))
    with watch(choose_mode(json=False, headless=quiet)) as emit:
        return inspect_model(path, shown, emit=emit, warn=show_warning)


def _read(path: Path) -> str:
    """The text in a file or on stdin; only the beginning of a long one."""
    is_stdin = str(path) == "-"
    try:
        if is_stdin:
            content = sys.stdin.buffer.read(MOST_TEXT_BYTES + 1)
        else:
            with open_named(path) as file:
                content = file.read(MOST_TEXT_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "give a file of text") from error
    is_cut = len(content) > MOST_TEXT_BYTES
    if is_cut:
        from cpulm.ui.console import show_warning
        from cpulm.units import format_bytes

        show_warning(f"{path} is long: only its first {format_bytes(MOST_TEXT_BYTES)} are used")
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        # A character that the cut went through is held back.
        return decoder.decode(content[:MOST_TEXT_BYTES], final=not is_cut).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        name = "stdin" if is_stdin else path
        raise DataError(
            f"{name} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}",
            "save it as UTF-8",
        ) from error
