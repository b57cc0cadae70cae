"""``cpulm sweep``: several runs that differ in a few settings, and which of them is the best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpulm.cli.options import HOW, HOW_LONG, OUTPUT, Epochs, Headless, MaxTime, Steps, Tokens
from cpulm.cli.train import complete_preset

if TYPE_CHECKING:
    from cpulm.settings import Settings
    from cpulm.sweep.plan import Plan, SweepDir
    from cpulm.sweep.prepare_plan import Wish
    from cpulm.sweep.trial_status import TrialStanding

WHAT, WHICH = "What to learn", "What to try"


def complete_sweep(incomplete: str) -> list[str]:
    """Folders of sweeps that begin with what was typed."""
    found = sorted(path.parent.as_posix() for path in Path("sweeps").glob("*/sweep.yaml"))
    return [folder for folder in found if folder.startswith(incomplete)]


def sweep(
    preset: Annotated[
        str | None,
        typer.Option(
            autocompletion=complete_preset,
            help="Settings to begin with. [default: tiny]",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text to learn from, as for train; repeatable.", rich_help_panel=WHAT),
    ] = None,
    val_data: Annotated[
        list[str] | None, typer.Option(help="Text to validate on, as for train.", rich_help_panel=WHAT)
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE,VALUE",
            help="Any setting: one value for all, several to try each, or a range LOW..HIGH to draw from; "
            "repeatable.",
            rich_help_panel=WHICH,
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(min=1, help="Draw so many combinations instead of trying all.", rich_help_panel=WHICH),
    ] = None,
    random_seed: Annotated[
        int, typer.Option(min=0, help="The same seed draws the same ones.", rich_help_panel=WHICH)
    ] = 0,
    halving: Annotated[
        bool,
        typer.Option(
            "--halving",
            help="Stop the worse half early: after an eighth, a quarter and a half of the tokens.",
            rich_help_panel=WHICH,
        ),
    ] = False,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.", rich_help_panel=HOW)] = None,
    steps: Steps = None,
    epochs: Epochs = None,
    tokens: Tokens = None,
    max_time: MaxTime = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train so many at a time, the cores divided among them. [default: 1]",
            rich_help_panel=HOW_LONG,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The sweep's folder. [default: sweeps/PRESET-N]", rich_help_panel=OUTPUT, show_default=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            autocompletion=complete_sweep,
            help="Go on with a sweep; no other option counts.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs; train nothing.", rich_help_panel=OUTPUT)
    ] = False,
    headless: Headless = False,
    json: Annotated[
        bool, typer.Option("--json", help="The result as one JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Try several values of settings: a run each, and a comparison of them, best first.

    Ctrl-C saves every run. The same command again, or `--resume`, goes on where it was. Each run is an
    ordinary run's folder: `cpulm watch`, `generate`, `evaluate` and `resume` work on it.

    **Examples**

        cpulm sweep --preset tiny --set train.lr=5e-3,1e-2,2e-2 --steps 200

        cpulm sweep --set train.lr=1e-3..3e-2 --set model.n_layer=2,4 --random 8 --halving

        cpulm sweep --resume sweeps/tiny-1
    """
    if resume is not None:
        others = (preset, data, val_data, assignments, random, random_seed or None, halving or None, config)
        more = (steps, epochs, tokens, max_time, parallel, out, dry_run or None)
        _go_on(resume, alone=all(one is None for one in (*others, *more)), headless=headless, json=json)
        return
    import os

    from cpulm.sweep.prepare_plan import Wish

    wish = Wish(
        preset=preset or (None if config else "tiny"),
        config=config,
        environ=os.environ,
        assignments=tuple(assignments or ()),
        flags={
            "data.source": data or None,
            "data.val_source": val_data or None,
            "train.steps": steps,
            "train.epochs": epochs,
            "train.tokens": tokens,
            "train.max_time": max_time,
        },
        random=random,
        random_seed=random_seed,
        parallel=parallel or 1,
        halving=halving,
    )
    _begin(wish, random_seed_given=random_seed != 0, out=out, dry_run=dry_run, headless=headless, json=json)


def _begin(
    wish: Wish, *, random_seed_given: bool, out: Path | None, dry_run: bool, headless: bool, json: bool
) -> None:
    from cpulm.errors import SettingsError
    from cpulm.interrupts import StopRequest
    from cpulm.sweep.prepare_plan import make_plan, settle
    from cpulm.system.machine import read_machine
    from cpulm.ui.console import say
    from cpulm.ui.watch import choose_mode, watch

    if random_seed_given and wish.random is None:
        raise SettingsError("--random-seed has no effect without --random", "give --random N too")
    mode = choose_mode(json=False, headless=headless or json)
    with watch(mode) as show, StopRequest() as stop:
        plan, settings = make_plan(wish, read_machine(), show=show, should_stop=stop)
    if dry_run:
        _show_plan(plan, settings, json=json)
        return
    folder, there = settle(out, settings[0].preset or "sweep", plan, settings)
    say(f"going on with {folder.path}" if there else f"{len(plan.trials)} runs in {folder.path}")
    _train(folder, plan, headless=headless, json=json)


def _go_on(path: Path, *, alone: bool, headless: bool, json: bool) -> None:
    from cpulm.errors import SettingsError
    from cpulm.sweep.prepare_plan import resumed

    if not alone:
        raise SettingsError(
            "--resume goes on with a sweep as it was planned", "leave out the other options, or begin another"
        )
    folder, plan = resumed(path)
    _train(folder, plan, headless=headless, json=json)


def _show_plan(plan: Plan, settings: list[Settings], *, json: bool) -> None:
    from cpulm.ui.console import print_json, stdout
    from cpulm.ui.tables import rows

    if json:
        print_json(plan)
        return
    table = [
        [
            trial.name,
            None if trial.steps is None else f"{trial.steps:,}",
            None if trial.steps is None else f"{trial.steps * one.tokens_per_step:,}",
            ", ".join(f"{rung:,}" for rung in trial.rungs) or None,
        ]
        for trial, one in zip(plan.trials, settings, strict=True)
    ]
    stdout().print(rows("", ["run", "steps", "tokens", "compared at steps"], table))


def _train(folder: SweepDir, plan: Plan, *, headless: bool, json: bool) -> None:
    from cpulm.sweep.run_sweep import Sweep
    from cpulm.ui.console import print_json, say
    from cpulm.ui.sweep import sweep_view
    from cpulm.ui.watch import choose_mode

    with sweep_view(choose_mode(json=False, headless=headless or json)) as view:
        ranked = Sweep(folder, plan, show=view.show, say=view.say).work()
    if json:
        print_json(_record(folder, plan, ranked))
        return
    from cpulm.cli.analyze import analyze

    # The comparison is that of any runs.
    analyze([folder.path])
    best = ranked[0]
    say(f"best: {best.run}; its settings: {folder.path}/trials/{best.name}.yaml")


def _record(folder: SweepDir, plan: Plan, ranked: tuple[TrialStanding, ...]) -> dict[str, Any]:
    from cpulm.analysis.changes import flat
    from cpulm.sweep.plan import read_settings

    trials = {trial.name: trial for trial in plan.trials}
    records = []
    for one in ranked:
        values = flat(read_settings(folder, trials[one.name]).model_dump(mode="json"))
        records.append({**one.__dict__, "values": {key: values[key] for key in plan.keys}})
    return {"sweep": folder.path, "best": ranked[0].run, "trials": records}
