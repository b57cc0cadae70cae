"""``cpulm train``: parse, resolve the settings, call the training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cpulm.cli.options import (
    HOW,
    HOW_LONG,
    MACHINE,
    OUTPUT,
    AllowSleep,
    Assignments,
    CheckpointEvery,
    Device,
    Epochs,
    Headless,
    Json,
    MaxTime,
    Nice,
    Overnight,
    PauseOnBattery,
    Precision,
    Steps,
    Threads,
    Tokens,
    Until,
    conduct,
    horizon,
)

WHAT = "What to learn"


def complete_preset(incomplete: str) -> list[str]:
    """Names of presets that begin with what was typed."""
    from cpulm.preset_files import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def train(
    preset: Annotated[
        str | None,
        typer.Option(
            autocompletion=complete_preset,
            help="Settings to begin with; see --list-presets. [default: tiny]",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to learn from: a file, folder, glob or prepared token folder; repeatable. "
            "[default: builtin:python, the Python library's own sources]",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    val_data: Annotated[
        list[str] | None,
        typer.Option(help="Text to validate on; else a part is held out.", rich_help_panel=WHAT),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder. [default: runs/PRESET-N]", rich_help_panel=WHAT, show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run at --out, if there is one.", rich_help_panel=WHAT),
    ] = False,
    steps: Steps = None,
    epochs: Epochs = None,
    tokens: Tokens = None,
    max_time: MaxTime = None,
    until: Until = None,
    target_loss: Annotated[
        float | None,
        typer.Option(help="End at this validation loss (nats per token).", rich_help_panel=HOW_LONG),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="End after so many validations without a new best.", rich_help_panel=HOW_LONG),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of AdamW.", rich_help_panel=HOW)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, data order and dropout.", rich_help_panel=HOW)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "--plan",
            help="A YAML file of settings: a run's settings.yaml, or a plan of cpulm benchmark --time.",
            rich_help_panel=HOW,
        ),
    ] = None,
    assignments: Assignments = None,
    device: Device = None,
    threads: Threads = None,
    precision: Precision = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Use torch.compile. [default: where it pays]",
            rich_help_panel=MACHINE,
            show_default=False,
        ),
    ] = None,
    overnight: Overnight = False,
    nice: Nice = None,
    allow_sleep: AllowSleep = None,
    pause_on_battery: PauseOnBattery = None,
    headless: Headless = False,
    json: Json = False,
    checkpoint_every: CheckpointEvery = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option(
            "--tensorboard", help="Write TensorBoard files too.", rich_help_panel=OUTPUT, show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what the run needs, after measured steps; train nothing.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print the resolved settings as YAML.", rich_help_panel=OUTPUT),
    ] = False,
    list_presets: Annotated[
        bool,
        typer.Option("--list-presets", help="Show the presets and what they need.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Train a model from text.

    Everything has a default: `cpulm train` alone trains the preset *tiny* on the Python library's
    sources. Stop with Ctrl-C at any time and go on with `cpulm resume`.

    Settings come from, in rising order: defaults, preset, `--config`, environment
    (`CPULM_TRAIN__LR`), `--set`, the options below. Prints the path of the best checkpoint.

    Example: `cpulm train --preset small --data notes/ --max-time 8h`
    """
    import os

    from cpulm.cli import run_training
    from cpulm.errors import SettingsError
    from cpulm.settings_resolver import resolve

    if list_presets:
        run_training.show_presets(json)
        return
    if overnight and (dry_run or print_config):
        raise SettingsError("--overnight trains, which --dry-run and --print-config do not", "leave one out")
    end = horizon(steps, epochs, tokens, max_time, until)
    changes = conduct(checkpoint_every, nice, allow_sleep, pause_on_battery)
    if resume and out is not None and run_training.is_run(out):
        run_training.go_on(out, end, changes, headless=headless, json=json, overnight=overnight)
        return
    settings = resolve(
        preset=preset or (None if config else "tiny"),
        config=config,
        environ=os.environ,
        assignments=assignments or (),
        flags={
            "data.source": data or None,
            "data.val_source": val_data or None,
            **{f"train.{name}": value for name, value in end.items()},
            **changes,
            "train.target_loss": target_loss,
            "train.patience": patience,
            "train.lr": lr,
            "train.seed": seed,
            "runtime.device": device,
            "runtime.threads": threads,
            "runtime.precision": precision,
            "runtime.compile": None if compile is None else "on" if compile else "off",
            "log.tensorboard": tensorboard or None,
        },
    )
    if print_config:
        run_training.print_settings(settings)
    elif dry_run:
        run_training.rehearse(settings, headless=headless, json=json)
    else:
        run_training.begin(settings, out, headless=headless, json=json, overnight=overnight)
