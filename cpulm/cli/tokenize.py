"""``cpulm tokenize``: text to a token folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpulm.cli.options import OUTPUT, Errors, Field

if TYPE_CHECKING:
    from cpulm.data.tokenfile import TokenFolder

SPLITTING, TOKENIZER = "Validation", "Tokenizer"


def tokenize(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Files, folders, globs, or `builtin:python`. Files that end in .jsonl hold one document "
            "a line; every other file is one document.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The token folder to write: absent, or empty.", rich_help_panel=OUTPUT)
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="KIND|FILE",
            help="bpe (byte-level), byte, char, word, or an existing tokenizer.json. [default: bpe]",
            rich_help_panel=TOKENIZER,
            show_default=False,
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            help="Entries of the vocabulary that bpe or word trains. [default: 4096]",
            rich_help_panel=TOKENIZER,
            show_default=False,
        ),
    ] = None,
    field: Field = None,
    errors: Errors = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="The part held out for validation. [default: 0.05]",
            rich_help_panel=SPLITTING,
            show_default=False,
        ),
    ] = None,
    val_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT",
            help="A validation text of its own instead; repeatable.",
            rich_help_panel=SPLITTING,
        ),
    ] = None,
    headless: Annotated[
        bool, typer.Option("--headless", help="Plain lines of progress.", rich_help_panel=OUTPUT)
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="The result as one JSON object on stdout.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Turn text into a folder of tokens that `cpulm train --data` reads.

    Training does this by itself; do it beforehand to choose the tokenizer, to look at the counts, or to
    use the same tokens many times. The folder holds train.bin, val.bin, tokenizer.json and meta.json,
    and is written whole or not at all. Texts of any size need the same memory.

    **Examples**

        cpulm tokenize notes/ --out tokens/notes --vocab-size 8192

        cpulm tokenize 'crawl/*.jsonl' --field content --out tokens/crawl
    """
    import os

    from cpulm.cli import tokenize_work as work
    from cpulm.errors import SettingsError
    from cpulm.settings_resolver import resolve
    from cpulm.ui.watch import choose_mode, watch

    if val_fraction is not None and val_data:
        raise SettingsError(
            "--val-fraction has no effect beside --val-data",
            "keep one: a text of its own, or a part held out",
        )
    flags = {
        "data.source": inputs,
        "data.val_source": val_data or None,
        "data.val_fraction": val_fraction,
        "data.tokenizer": tokenizer,
        "data.vocab_size": vocab_size,
        "data.field": field,
        "data.errors": errors,
    }
    data = resolve(environ=os.environ, flags=flags).data
    # The result is one JSON object, so progress is for people in either case.
    with watch(choose_mode(json=False, headless=headless or json)) as show:
        folder = work.tokenize(data, out, vocab_size_given=vocab_size is not None, show=show)
    _report(folder, json)


def _report(folder: TokenFolder, json: bool) -> None:
    from cpulm.ui.console import print_json, stdout
    from cpulm.ui.tables import key_values, rows
    from cpulm.units import format_bytes

    meta = folder.meta
    if json:
        print_json({"path": folder.path, "digest": folder.digest, **meta})
        return
    facts = [
        ("folder", folder.path),
        ("tokenizer", f"{meta['tokenizer']}, {folder.vocab_size:,} tokens"),
        ("files", f"{meta['file_count']:,}"),
        ("stored as", f"{meta['dtype']}, {format_bytes(folder.train.nbytes + folder.val.nbytes)}"),
    ]
    columns = ["split", "documents", "bytes of text", "tokens", "bytes/token"]
    table = [
        [
            name,
            f"{meta[split]['documents']:,}",
            f"{meta[split]['bytes']:,}",
            f"{meta[split]['tokens']:,}",
            f"{meta[split]['bytes_per_token']:.2f}",
        ]
        for split, name in (("train", "training"), ("val", "validation"))
    ]
    console = stdout()
    console.print(key_values("Tokens", facts))
    console.print()
    console.print(rows("", columns, table))
