"""``cpulm generate``: text from a trained model, streamed to the terminal, or as JSON."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cpulm.cli import completion, record_flags, sampling_flags
from cpulm.cli.generate_records import show_fields, write_rows
from cpulm.cli.precision_flag import WRITING
from cpulm.cli.setting_flags import COMMON, MACHINE, OUTPUT, JsonResult, setting_flags
from cpulm.errors import DataError, SettingsError
from cpulm.regular_file import read_named

MOST_PROMPT_BYTES = 1 << 28
"""Far more than any model reads; a device may have no end."""


@setting_flags({MACHINE: WRITING})
def generate(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.run,
            help="A run's folder (its best.pt, else the newest checkpoint), a checkpoint, a folder of "
            "transformers or a GGUF file.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="RUN", autocompletion=completion.run, help="The same, by name.", hidden=True),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What the text begins with. [default: piped stdin, else the start of a document]",
            rich_help_panel=COMMON,
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read the prompt from a file (- for stdin), without its last line end.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Ask for one prompt after another. Ctrl-C stops a text; Ctrl-D or an empty line exits.",
            rich_help_panel=COMMON,
        ),
    ] = False,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Maximum number of tokens to write. [default: 256]",
            rich_help_panel=COMMON,
        ),
    ] = 256,
    num_samples: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Texts to write. [default: 1]", rich_help_panel=COMMON),
    ] = 1,
    temperature: sampling_flags.Temperature = 0.8,
    top_k: sampling_flags.TopK = None,
    top_p: sampling_flags.TopP = None,
    min_p: sampling_flags.MinP = None,
    repetition_penalty: sampling_flags.RepetitionPenalty = 1.0,
    seed: sampling_flags.Seed = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="End the text before this string; \\n and \\t are read as line end and tab; repeatable.",
            rich_help_panel=sampling_flags.SAMPLING,
        ),
    ] = None,
    echo: Annotated[
        bool, typer.Option(help="Show the prompt before the text.", rich_help_panel=OUTPUT)
    ] = True,
    json: JsonResult = False,
    field: record_flags.Field = None,
    fields: record_flags.Fields = False,
    rows: record_flags.Rows = False,
    regex: record_flags.Regex = None,
    grammar: record_flags.Grammar = None,
    json_schema: record_flags.JsonSchema = None,
    values: record_flags.Values = None,
    unique: record_flags.Unique = None,
    count: record_flags.Count = None,
    rules: record_flags.Rules = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Write text with a trained model.

    The text goes to stdout while it is written; tokens per second and the seed go to stderr.

    **Examples**

        cpulm generate runs/tiny-1

        cpulm generate runs/tiny-1 --prompt "def " --temperature 0.5

        cpulm generate runs/climb-1 --field grade=7A --num-samples 10 --rows
    """
    model = _one_model(run, checkpoint)
    if fields:
        show_fields(model, json=json)
        return
    given_fields = record_flags.pairs("--field", field)
    of_records = bool(given_fields or rows or values or unique or count)
    prompted = prompt is not None or prompt_file is not None
    _check_combination(interactive, prompted, of_records, rows=rows, json=json)
    text = None if interactive else "" if of_records else _read_prompt(prompt, prompt_file)
    if temperature == 0:
        given = {"--top-k": top_k, "--top-p": top_p, "--min-p": min_p, "--seed": seed}
        _warn_of_no_effect([name for name, value in given.items() if value is not None], num_samples)

    from cpulm.cli import generate_output

    request = generate_output.GenerateRequest(
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        stop=tuple(map(_unescape, stop or ())),
        echo=echo,
        sampling=sampling_flags.sampling_of(temperature, top_k, top_p, min_p, repetition_penalty),
        fields=given_fields,
        rules={
            **{"regex": regex, "grammar": grammar, "json_schema": json_schema},
            **record_flags.field_rules(values, unique, count),
            "functions": tuple(rules or ()),
        },
        writes_records=of_records or not text,
    )
    writer = generate_output.load(model, flags, request)
    first_seed = random.randrange(10**6) if seed is None else seed
    if text is None:
        generate_output.converse(writer, first_seed, str(model))
    elif rows:
        write_rows(writer, first_seed)
    else:
        write = generate_output.write_json if json else generate_output.write_once
        write(writer, text, first_seed)


def _one_model(run: Path | None, checkpoint: Path | None) -> Path:
    given = [one for one in (run, checkpoint) if one is not None]
    if not given:
        raise SettingsError("RUN is missing", "such as `cpulm generate runs/tiny-1`")
    if len(given) > 1:
        raise SettingsError(f"two runs are given: {run} and {checkpoint}", "keep one of them")
    return given[0]


def _check_combination(interactive: bool, prompt: bool, of_records: bool, *, rows: bool, json: bool) -> None:
    """Refuse options that exclude each other."""
    if interactive and (prompt or json or of_records):
        raise SettingsError(
            "--interactive asks for prompts and prints plain text",
            "leave out --prompt, --prompt-file, --json and what is for records, or leave out --interactive",
        )
    if of_records and prompt:
        raise SettingsError("records begin with their fields, not with a prompt", "leave out --prompt")
    if rows and json:
        raise SettingsError("--rows and --json are two forms of output", "keep one of them")


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from its option, its file, or stdin if that is not a terminal."""
    if prompt is not None and file is not None:
        raise SettingsError("--prompt and --prompt-file are both given", "keep one of them")
    if prompt is not None:
        return prompt
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        return ""
    try:
        text = read_named(file or Path("-"), MOST_PROMPT_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the prompt from {file or 'stdin'}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the prompt in {file or 'stdin'} is not UTF-8: byte {error.object[error.start]:#04x} "
            f"at offset {error.start}",
            "save the file as UTF-8",
        ) from error
    # Editors and echo put a line end behind what was meant
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


def _unescape(text: str) -> str:
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t"}.get(match[1], "\\"), text)


def _warn_of_no_effect(names: list[str], num_samples: int) -> None:
    from cpulm.ui.console import show_warning

    if names:
        show_warning(f"temperature 0 takes the likeliest token: without effect: {', '.join(names)}")
    if num_samples > 1:
        show_warning("temperature 0 takes the likeliest token: all samples will be the same")
