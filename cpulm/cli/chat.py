"""``cpulm chat``: a talk with a model that was trained on conversations."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any

import typer

from cpulm.cli import completion, sampling_flags
from cpulm.cli.precision_flag import WRITING
from cpulm.cli.setting_flags import COMMON, MACHINE, setting_flags


@setting_flags({MACHINE: WRITING})
def chat(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.run,
            help="A run's folder (its best.pt, else the newest checkpoint), a checkpoint, or a model that "
            "cpulm exported.",
            show_default=False,
        ),
    ],
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What the model is told before the talk. [default: nothing]",
            rich_help_panel=COMMON,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Maximum number of tokens of an answer. [default: 512]",
            rich_help_panel=COMMON,
        ),
    ] = 512,
    temperature: sampling_flags.Temperature = 0.8,
    top_k: sampling_flags.TopK = None,
    top_p: sampling_flags.TopP = None,
    min_p: sampling_flags.MinP = None,
    repetition_penalty: sampling_flags.RepetitionPenalty = 1.0,
    seed: sampling_flags.Seed = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Talk with a model that was trained on conversations (`cpulm train --chat`).

    Each line is a message; the model sees the talk so far. In a pipe, lines go in and answers come out.

    **Examples**

        cpulm chat runs/tiny-1

        cpulm chat runs/tiny-1 --system "Answer with a number." --temperature 0

        echo "What is 3 + 4?" | cpulm chat runs/tiny-1
    """
    from cpulm.cli import chat_talk

    sampling = sampling_flags.sampling_of(temperature, top_k, top_p, min_p, repetition_penalty)
    chosen = random.randrange(10**6) if seed is None else seed
    talk = chat_talk.begin(run, flags, sampling, max_new_tokens, chosen)
    if system is not None:
        talk.set_system(system)
    chat_talk.converse(talk, str(run))
