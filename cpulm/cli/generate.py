"""``cpulm generate``: text from a trained model, to the terminal as it comes, or as JSON."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from cpulm.cli.resume import complete_run
from cpulm.errors import DataError, SettingsError

PROMPT, SAMPLING, OUTPUT, MACHINE = "What to begin with", "How tokens are chosen", "Output", "Machine"
DEFAULT_TOP_K = 50


def generate(
    checkpoint: Annotated[
        Path,
        typer.Option(
            autocompletion=complete_run,
            help="A checkpoint, or a run's folder (its best.pt, else its newest).",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What the text begins with. [default: stdin when piped, else the start of a document]",
            rich_help_panel=PROMPT,
            show_default=False,
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            help="Read the prompt from a file (- for stdin), without the line end at its end.",
            rich_help_panel=PROMPT,
            show_default=False,
        ),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Ask for one prompt after another. Ctrl-C stops a text, Ctrl-D or an empty line ends.",
            rich_help_panel=PROMPT,
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="The most tokens to write.", rich_help_panel=SAMPLING)
    ] = 256,
    temperature: Annotated[
        float,
        typer.Option(
            help="0 takes the likeliest token, 1 the model's own probabilities.", rich_help_panel=SAMPLING
        ),
    ] = 0.8,
    top_k: Annotated[
        int | None,
        typer.Option(
            help=f"Choose among this many likeliest tokens; 0: among all. [default: {DEFAULT_TOP_K}]",
            rich_help_panel=SAMPLING,
            show_default=False,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Choose among the fewest likeliest tokens with this probability together. [default: off]",
            rich_help_panel=SAMPLING,
            show_default=False,
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Leave out tokens less likely than this part of the likeliest. [default: off]",
            rich_help_panel=SAMPLING,
            show_default=False,
        ),
    ] = None,
    repetition_penalty: Annotated[
        float,
        typer.Option(help="Above 1: tokens already in the text are less likely.", rich_help_panel=SAMPLING),
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The same seed gives the same text. [default: another one each time]",
            rich_help_panel=SAMPLING,
            show_default=False,
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="End before this string; \\n and \\t are read as line end and tab; repeatable.",
            rich_help_panel=SAMPLING,
            show_default=False,
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=1, help="How many texts to write, side by side.", rich_help_panel=OUTPUT)
    ] = 1,
    echo: Annotated[
        bool, typer.Option(help="Show the prompt before the text.", rich_help_panel=OUTPUT)
    ] = True,
    json: Annotated[
        bool, typer.Option("--json", help="Texts and figures as JSON on stdout.", rich_help_panel=OUTPUT)
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda or mps. [default: auto]", rich_help_panel=MACHINE, show_default=False
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads. [default: the physical cores]", rich_help_panel=MACHINE, show_default=False
        ),
    ] = None,
) -> None:
    """Write text with a trained model.

    The text goes to stdout as it comes; tokens per second and the seed go to stderr.

    Example: `cpulm generate --checkpoint runs/tiny-1 --prompt "def " --temperature 0.5`
    """
    if interactive and (prompt is not None or prompt_file is not None or json):
        raise SettingsError(
            "--interactive asks for its prompts and shows plain text",
            "leave out --prompt, --prompt-file and --json, or --interactive",
        )
    text = None if interactive else _read_prompt(prompt, prompt_file)
    if temperature == 0:
        given = {"--top-k": top_k, "--top-p": top_p, "--min-p": min_p, "--seed": seed}
        _warn_of_no_effect([name for name, value in given.items() if value is not None], num_samples)

    from cpulm.cli import generate_output

    request = generate_output.GenerateRequest(
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        stop=tuple(map(_unescape, stop or ())),
        echo=echo,
        sampling={
            "temperature": temperature,
            "top_k": DEFAULT_TOP_K if top_k is None else top_k or None,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
        },
    )
    writer = generate_output.load(checkpoint, device, threads, request)
    first_seed = random.randrange(10**6) if seed is None else seed
    if text is None:
        generate_output.converse(writer, first_seed)
    elif json:
        generate_output.write_json(writer, text, first_seed)
    else:
        generate_output.write_once(writer, text, first_seed)


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from its option, its file, or stdin where that is no terminal."""
    if prompt is not None and file is not None:
        raise SettingsError("--prompt and --prompt-file are both given", "keep one of them")
    if prompt is not None:
        return prompt
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        return ""
    try:
        content = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise DataError(f"cannot read the prompt from {file or 'stdin'}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the prompt in {file or 'stdin'} is not UTF-8: byte {error.object[error.start]:#04x} "
            f"at offset {error.start}",
            "save it as UTF-8",
        ) from error
    # Editors and echo put a line end behind what was meant
    return text.removesuffix("\n")


def _unescape(text: str) -> str:
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t"}.get(match[1], "\\"), text)


def _warn_of_no_effect(names: list[str], num_samples: int) -> None:
    from cpulm.ui.console import show_warning

    if names:
        show_warning(f"temperature 0 takes the likeliest token: no effect of {', '.join(names)}")
    if num_samples > 1:
        show_warning("temperature 0 takes the likeliest token: all samples will be the same")
