"""Options that say how tokens are chosen, of the commands that write with a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

SAMPLING = "How tokens are chosen"
DEFAULT_TOP_K = 50

Temperature = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="0 takes the likeliest token, 1 the model's own probabilities. [default: 0.8]",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help=f"Choose among the N likeliest tokens; 0: among all. [default: {DEFAULT_TOP_K}]",
        rich_help_panel=SAMPLING,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Choose among the likeliest tokens that together have probability X. [default: off]",
        rich_help_panel=SAMPLING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Drop tokens less likely than X times the likeliest. [default: off]",
        rich_help_panel=SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Above 1: tokens already in the text become less likely. [default: 1]",
        rich_help_panel=SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="The same seed gives the same text. [default: random]",
        rich_help_panel=SAMPLING,
    ),
]


def sampling_of(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float
) -> dict[str, Any]:
    """The fields of ``cpulm.generation.sampling.Sampling``."""
    return {
        "temperature": temperature,
        "top_k": DEFAULT_TOP_K if top_k is None else top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": penalty,
    }
