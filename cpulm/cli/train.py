"""``cpulm train``: parse, resolve the settings, call the training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flags import (
    BEHAVIOUR,
    COMMON,
    FILES,
    FLAGS,
    HOW_LONG,
    KEPT_BY_RESUME,
    LEARNING,
    MACHINE,
    MODEL,
    OUTPUT,
    PROCESSES,
    READING,
    SHAPE,
    TEXT,
    TEXTS,
    TOGETHER,
    Assignments,
    Config,
    Headless,
    JsonEvents,
    Preset,
    horizon,
    setting_flags,
    with_text,
)


@setting_flags(
    {
        COMMON: ("max_time", "steps", "batch_size", "lr", "muon_lr"),
        TEXT: TEXTS,
        FILES: READING,
        HOW_LONG: ("until", "epochs", "tokens", "target_loss", "patience", "eval_every"),
        MODEL: SHAPE,
        LEARNING: ("records", "grad_accum", "seed", "init_from", "lora_rank", "generations", "teacher"),
        MACHINE: ("device", "threads", "precision", "compile", *BEHAVIOUR),
        PROCESSES: TOGETHER,
        OUTPUT: ("checkpoint_every", "tensorboard"),
    }
)
def train(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Text to learn from. [default: builtin:python]",
            rich_help_panel=COMMON,
            autocompletion=completion.paths,
        ),
    ] = None,
    preset: Preset = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The run's folder. [default: runs/PRESET-N]", rich_help_panel=COMMON
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run at --out, if there is one.", rich_help_panel=COMMON),
    ] = False,
    overnight: Annotated[
        bool,
        typer.Option(
            "--overnight",
            help="Train in the background; restart after a crash.",
            rich_help_panel=COMMON,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Measure what the run needs; train nothing.", rich_help_panel=COMMON),
    ] = False,
    config: Config = None,
    assignments: Assignments = None,
    headless: Headless = False,
    json: JsonEvents = False,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print the resolved settings as YAML.", rich_help_panel=OUTPUT),
    ] = False,
    list_presets: Annotated[
        bool,
        typer.Option("--list-presets", help="Show the presets and what they need.", rich_help_panel=OUTPUT),
    ] = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Train a model from text.

    Everything has a default: `cpulm train` alone trains the preset *tiny* on the Python library's
    sources. With a time and no preset, everything is chosen for this machine, the text and the time
    (`--preset auto`). Ctrl-C stops and saves; `cpulm resume` continues. The path of the best checkpoint is
    printed at the end.

    Later sources of settings override earlier ones: defaults, preset, `--config`, environment
    (`CPULM_TRAIN__LR`), `--set`, named options. All settings: docs/settings.md.

    **Examples**

        cpulm train notes/ --max-time 8h

        cpulm train book.txt --tokenizer char --n-layer 4 --n-embd 128 --steps 2000

        cpulm train chats.jsonl --chat --init-from runs/tiny-1 --epochs 2
    """
    import os

    from cpulm.api.new_run import resolve_new_run
    from cpulm.cli import run_training, several_processes
    from cpulm.cli.learning_rates import check_rates
    from cpulm.cli.no_effect import ignored_by_resume, without_effect
    from cpulm.errors import SettingsError
    from cpulm.settings.resolve_settings import is_given
    from cpulm.ui.console import show_warning

    if list_presets:
        run_training.show_presets(json)
        return
    out, resume = several_processes.restarted(out, resume=resume)
    continues = out if resume and out is not None and run_training.is_run(out) else None
    if (overnight or continues) and (dry_run or print_config):
        which = "--overnight trains" if overnight else "--resume trains"
        raise SettingsError(f"{which}, and --dry-run and --print-config do not", "leave one out")
    given: dict[str, Any] = {
        "config": Path(config) if config else None,
        "environ": os.environ,
        "assignments": assignments or (),
        "flags": with_text(flags, text),
    }
    if continues:
        kept = {FLAGS[name].key: flags.get(FLAGS[name].key) for name in KEPT_BY_RESUME}
        for warning in ignored_by_resume(continues, kept, preset, **given):
            show_warning(warning)
        run_training.go_on(continues, horizon(flags), kept, headless=headless, json=json, overnight=overnight)
        return
    settings, make = resolve_new_run(preset, given)
    warnings = check_rates(settings, assignments or (), flags)
    warnings += without_effect(settings, assignments or (), flags)
    block_is_wish = not is_given("model.block_size", **given)
    if print_config:
        run_training.print_settings(settings, make)
    elif dry_run:
        run_training.rehearse(settings, warnings, block_is_wish, make, headless=headless, json=json)
    else:
        run_training.begin(
            settings, out, warnings, block_is_wish, make, headless=headless, json=json, overnight=overnight
        )
