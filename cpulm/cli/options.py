"""The options that several commands share, worded once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

HOW, HOW_LONG, TEXT, MACHINE, OUTPUT = "How", "How long", "The text", "Machine", "Output"

Steps = Annotated[
    int | None, typer.Option(help="Optimizer updates, from the very start.", rich_help_panel=HOW_LONG)
]
Epochs = Annotated[
    float | None, typer.Option(help="Passes over the training text.", rich_help_panel=HOW_LONG)
]
Tokens = Annotated[int | None, typer.Option(help="Trained tokens.", rich_help_panel=HOW_LONG)]
MaxTime = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION",
        help="Time over all parts of the run, such as 8h or 90min; the learning rate ends its decay "
        "when the time does.",
        rich_help_panel=HOW_LONG,
    ),
]
Until = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="The moment to be done, such as 07:00 or '2026-05-01 07:00'; the decay ends there.",
        rich_help_panel=HOW_LONG,
    ),
]
CheckpointEvery = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION",
        help="Time between checkpoints. [default: 10min]",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
Nice = Annotated[
    bool | None,
    typer.Option(
        "--nice/--no-nice", help="Give way to other programs.", rich_help_panel=MACHINE, show_default=False
    ),
]
AllowSleep = Annotated[
    bool | None,
    typer.Option(
        "--allow-sleep/--no-allow-sleep",
        help="Let the machine go to sleep while it trains.",
        rich_help_panel=MACHINE,
        show_default=False,
    ),
]
PauseOnBattery = Annotated[
    bool | None,
    typer.Option(
        "--pause-on-battery/--no-pause-on-battery",
        help="Wait while the machine runs on battery.",
        rich_help_panel=MACHINE,
        show_default=False,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, such as model.n_layer=8; repeatable.",
        rich_help_panel=HOW,
    ),
]
Field = Annotated[
    str | None,
    typer.Option(
        help="The field of a JSONL line that holds its text. [default: text]",
        rich_help_panel=TEXT,
        show_default=False,
    ),
]
Errors = Annotated[
    str | None,
    typer.Option(
        metavar="strict|replace",
        help="Bytes that are no UTF-8: stop and name the place, or put U+FFFD there. [default: strict]",
        rich_help_panel=TEXT,
        show_default=False,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda or mps. [default: auto]", rich_help_panel=MACHINE)
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads. [default: the cores, measured]", rich_help_panel=MACHINE)
]
Precision = Annotated[
    str | None, typer.Option(help="auto, fp32 or bf16. [default: auto]", rich_help_panel=MACHINE)
]
Overnight = Annotated[
    bool,
    typer.Option(
        "--overnight",
        help="Train in the background: outlives this terminal, starts again after a crash, leaves a summary.",
        rich_help_panel=MACHINE,
    ),
]
Headless = Annotated[
    bool, typer.Option("--headless", help="Plain lines instead of the dashboard.", rich_help_panel=OUTPUT)
]
Json = Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.", rich_help_panel=OUTPUT)]


def horizon(
    steps: int | None, epochs: float | None, tokens: int | None, max_time: str | None, until: str | None
) -> dict[str, Any]:
    """The horizon's settings by their names, None for those not given.

    Raises:
        SettingsError: where ``until`` is no moment, or one that has passed.
    """
    moment = None
    if until is not None:
        from cpulm.cli.until import parse_until

        moment = parse_until(until).isoformat()
    return {"steps": steps, "epochs": epochs, "tokens": tokens, "max_time": max_time, "until": moment}


def conduct(
    checkpoint_every: str | None, nice: bool | None, allow_sleep: bool | None, pause_on_battery: bool | None
) -> dict[str, Any]:
    """Settings that leave the weights alone, by their full names, None for those not given."""
    return {
        "checkpoint.every": checkpoint_every,
        "runtime.nice": nice,
        "runtime.allow_sleep": allow_sleep,
        "runtime.pause_on_battery": pause_on_battery,
    }
