"""``cpulm tokenize``: text to a token folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flags import (
    COMMON,
    FILES,
    FLAGS,
    OUTPUT,
    READING,
    TEXT,
    TEXTS,
    Headless,
    JsonResult,
    setting_flags,
    with_text,
)

if TYPE_CHECKING:
    from cpulm.data.tokenfile import TokenFolder
    from cpulm.events import Listener
    from cpulm.settings import DataSettings


RAW_TEXT = dataclasses.replace(
    FLAGS["data"], help="A file, folder, glob, hf:NAME, or builtin:python; repeatable."
)


@setting_flags({TEXT: (RAW_TEXT, *TEXTS[1:]), FILES: READING})
def tokenize(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Files, folders, globs, or builtin:python. Rows of CSV, TSV and JSON are documents; "
            "other files are one each.",
            rich_help_panel=COMMON,
            autocompletion=completion.paths,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The token folder to write; if it exists, it must be empty.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    inspect: Annotated[
        bool,
        typer.Option(
            "--inspect",
            help="Show what the text is made of: lengths, tokens, duplicates, damage, secrets, samples.",
            rich_help_panel=COMMON,
        ),
    ] = False,
    list_cache: Annotated[
        bool,
        typer.Option(
            "--list-cache", help="Show the tokens that runs keep in the cache.", rich_help_panel=OUTPUT
        ),
    ] = False,
    prune_cache: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Delete cached tokens that no run used for so long, such as 30d or 1s.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting of the text: data.row_weight=seen; repeatable.",
            rich_help_panel=COMMON,
            autocompletion=completion.text_assignment,
        ),
    ] = None,
    headless: Headless = False,
    json: JsonResult = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Turn text into a folder of tokens that `cpulm train` reads.

    Training does this automatically. Do it beforehand to choose the tokenizer, to see the counts, or to
    use the same tokens many times. The folder holds train.bin, val.bin, tokenizer.json and meta.json,
    and is written completely or not at all.

    **Examples**

        cpulm tokenize notes/ --out tokens/notes --vocab-size 8192

        cpulm tokenize 'crawl/*.jsonl' --field content --out tokens/crawl

        cpulm tokenize notes/ --inspect
    """
    import os

    from cpulm.errors import SettingsError
    from cpulm.settings.resolve_settings import resolve
    from cpulm.ui.watch import choose_mode, watch

    if list_cache or prune_cache is not None:
        from cpulm.cli.cached_tokens import show_cache

        if text or out is not None or flags or assignments:
            raise SettingsError(
                "--list-cache and --prune-cache make no tokens", "leave out the text and its options"
            )
        show_cache(prune_cache, json=json)
        return
    flags = with_text(flags, text)
    example = "such as `cpulm tokenize notes/ --out tokens/notes`"
    if "data.source" not in flags:
        raise SettingsError("TEXT is missing", example)
    if out is None and not inspect:
        raise SettingsError("--out is missing", example)
    if out is not None and inspect:
        raise SettingsError("--inspect writes no tokens", "leave out --out, or tokenize without --inspect")
    if "data.val_fraction" in flags and "data.val_source" in flags:
        raise SettingsError("--val-fraction has no effect together with --val-data", "keep one of them")
    if strange := [one for one in assignments or () if not one.strip().startswith("data.")]:
        raise SettingsError(f"--set {strange[0]} has no effect on tokens", "the settings of text are data.*")
    data = resolve(environ=os.environ, assignments=assignments or (), flags=flags).data
    # The result is one JSON object, so progress is for people in either case.
    if inspect:
        _inspect(data, headless=headless or json, json=json)
        return
    assert out is not None
    with watch(choose_mode(json=False, headless=headless or json)) as show:
        folder = _make(data, out, vocab_size_given="data.vocab_size" in flags, show=show)
    _report(folder, json)


def _make(data: DataSettings, out: Path, *, vocab_size_given: bool, show: Listener) -> TokenFolder:
    """Make the token folder ``out``; a stop signal ends the work and leaves nothing behind.

    Raises:
        CpulmError: what :func:`cpulm.data.prepare.prepare` raises.
        SettingsError: if a vocabulary size is given for a tokenizer that trains none.
    """
    from cpulm.data.prepare import prepare
    from cpulm.data.vocabulary import trains_vocabulary
    from cpulm.errors import AbortedError, SettingsError
    from cpulm.interrupts import StopRequest

    if vocab_size_given and not trains_vocabulary(data.tokenizer):
        raise SettingsError(
            f"--vocab-size has no effect: the tokenizer {data.tokenizer} has a vocabulary of its own",
            "leave it out, or use --tokenizer bpe or word",
        )
    try:
        with StopRequest() as stop:
            return prepare(data, emit=show, should_stop=stop, out=out)
    except AbortedError as error:
        raise AbortedError("aborted; nothing was written") from error


def _inspect(data: DataSettings, *, headless: bool, json: bool) -> None:
    from cpulm.data.survey import inspect_text
    from cpulm.interrupts import StopRequest
    from cpulm.ui.console import print_json, stdout
    from cpulm.ui.text_report import text_report
    from cpulm.ui.watch import choose_mode, watch

    with watch(choose_mode(json=False, headless=headless)) as show, StopRequest() as stop:
        found = inspect_text(data, seed=0, emit=show, should_stop=stop)
    if json:
        print_json(found)
        return
    for part in text_report(found):
        stdout().print(part)


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
