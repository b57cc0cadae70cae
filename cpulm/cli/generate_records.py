"""Records that ``generate`` writes as rows, and the fields that a model knows."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from cpulm.errors import SettingsError

if TYPE_CHECKING:
    from cpulm.cli.generate_output import Writer

_MOST_SHOWN = 40


def show_fields(checkpoint: Path, *, json: bool) -> None:
    """Print the values of all fields that the model knows, each with how often it was in the training data.

    Raises:
        SettingsError: if the model was not trained on rows.
    """
    from cpulm.checkpoints.load_model import best_checkpoint
    from cpulm.data.reading import Reading
    from cpulm.ui import tables
    from cpulm.ui.console import print_json, show_warning, stdout

    found, _, _ = best_checkpoint(checkpoint, show_warning)
    template = Reading.of(found.settings.data).parsed_template
    if template is None:
        raise SettingsError(
            f"{checkpoint} has no fields: it was not trained on rows with data.template",
            "give the beginning of the text: --prompt",
        )
    columns: dict[str, dict[str, int]] = found.data.get("columns", {})
    if json:
        print_json({name: columns.get(name) for name in dict.fromkeys(template.columns)})
        return
    for name in dict.fromkeys(template.columns):
        counts = columns.get(name)
        if counts is None:
            stdout().print(f"{name}: more values than are counted, so any can be given", soft_wrap=True)
            continue
        shown = [(value, f"{count:,}") for value, count in list(counts.items())[:_MOST_SHOWN]]
        if len(counts) > _MOST_SHOWN:
            shown.append((f"and {len(counts) - _MOST_SHOWN:,} more", ""))
        stdout().print(tables.rows(name, ("value", "records"), shown))


def write_rows(writer: Writer, seed: int) -> None:
    """Print the records as CSV with the columns of the template; say how many were not whole.

    Raises:
        SettingsError: if the model was not trained on rows, or no text was a whole record.
    """
    from cpulm.cli.generate_output import Texts
    from cpulm.ui.console import show_warning, stderr, write_text

    texts = Texts(writer, "", seed)
    record = texts.record
    if record is None:
        raise SettingsError(
            "this model has no columns: it was not trained on rows with data.template", "leave out --rows"
        )
    with stderr().status("writing"):
        for _ in texts.pieces():
            pass
    out = io.StringIO()
    names = list(dict.fromkeys(record.template.columns))
    table = csv.DictWriter(out, names, lineterminator="\n")
    table.writeheader()
    left_out = 0
    for completion in texts.completions:
        values = record.values(writer.tokenizer, completion.tokens)
        if values is None or completion.stop_reason != "end_of_text":
            left_out += 1
        else:
            table.writerow(record.row(values))
    write_text(out.getvalue())
    stderr().print(texts.note(), style="dim")
    if left_out:
        count = "1 text is" if left_out == 1 else f"{left_out} texts are"
        show_warning(f"{count} left out: not a whole record of the template")
