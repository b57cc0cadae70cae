"""``cpulm sweep``: several runs that differ in a few settings, and which of them is the best."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flags import (
    COMMON,
    FILES,
    HOW_LONG,
    LEARNING,
    MACHINE,
    MODEL,
    OUTPUT,
    READING,
    SHAPE,
    TEXT,
    TEXTS,
    Config,
    Headless,
    JsonResult,
    Preset,
    setting_flags,
    with_text,
)
from cpulm.command import typed

if TYPE_CHECKING:
    from cpulm.settings import Settings
    from cpulm.sweep.plan import Plan, SweepDir
    from cpulm.sweep.prepare_plan import Beginning, Wish
    from cpulm.sweep.trial_status import TrialStatus

WHICH = "What to try"


@setting_flags(
    {
        COMMON: ("max_time", "steps", "batch_size", "lr", "muon_lr"),
        TEXT: TEXTS,
        FILES: READING,
        HOW_LONG: ("epochs", "tokens", "target_loss", "patience", "eval_every"),
        MODEL: SHAPE,
        LEARNING: ("grad_accum",),
        MACHINE: ("device", "threads", "precision"),
    }
)
def sweep(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Text to learn from, as in cpulm train.",
            rich_help_panel=COMMON,
            autocompletion=completion.paths,
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=V,V",
            help="Any setting: one value for all runs, several values to try, or a range LOW..HIGH for "
            "--random; repeatable.",
            rich_help_panel=COMMON,
            autocompletion=completion.assignment,
        ),
    ] = None,
    preset: Preset = None,
    random: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Draw N combinations instead of trying all.", rich_help_panel=COMMON
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Seed of the random draws; --set train.seed=N is the seed of the runs. [default: 0]",
            rich_help_panel=COMMON,
        ),
    ] = None,
    halving: Annotated[
        bool,
        typer.Option(
            "--halving",
            help="Stop the worse half early: after 1/8, 1/4 and 1/2 of the tokens.",
            rich_help_panel=COMMON,
        ),
    ] = False,
    parallel: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Train N runs at a time; each gets a share of the cores. [default: 1]",
            rich_help_panel=COMMON,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs; train nothing.", rich_help_panel=COMMON)
    ] = False,
    config: Config = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The sweep's folder. [default: sweeps/PRESET-N]", rich_help_panel=OUTPUT
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Now `cpulm resume FOLDER`.", hidden=True),
    ] = None,
    headless: Headless = False,
    json: JsonResult = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Try several values of settings: train one run for each, and compare them.

    Ctrl-C saves every run; `cpulm resume FOLDER`, or the same command again, continues. Each run has a
    folder of its own, for `cpulm watch`, `generate`, `evaluate` and `resume`.

    **Examples**

        cpulm sweep --set train.muon_lr=1e-2,2e-2,4e-2 --steps 200

        cpulm sweep notes/ --set train.muon_lr=1e-3..3e-2 --random 8 --halving
    """
    from cpulm.errors import SettingsError

    if resume is not None:
        others = (text, preset, assignments, random, seed, parallel, config, out)
        if flags or halving or dry_run or any(one not in (None, []) for one in others):
            raise SettingsError(
                f"{resume} continues as planned",
                f"leave out the other options: `cpulm resume {typed(resume)}`",
            )
        continue_sweep(resume, headless=headless, json=json)
        return
    if seed is not None and random is None:
        raise SettingsError(
            "--seed is the seed of --random, and has no effect without it",
            "give --random N too; the seed of the runs is --set train.seed=N",
        )
    import os

    from cpulm.sweep.prepare_plan import Wish

    wish = Wish(
        preset=preset or (None if config else "tiny"),
        config=Path(config) if config else None,
        environ=os.environ,
        assignments=tuple(assignments or ()),
        flags=with_text(flags, text),
        begin=_reader_of_models(),
        random=random,
        random_seed=seed or 0,
        parallel=parallel or 1,
        halving=halving,
    )
    _begin(wish, out=out, dry_run=dry_run, headless=headless, json=json)


def _reader_of_models() -> Callable[[Settings], Beginning]:
    """Gives what runs with some settings take from the model of ``train.init_from``, read once."""

    @cache
    def read(path: str, adapters: bool) -> Beginning:
        from cpulm.sweep.prepare_plan import Beginning
        from cpulm.training.initial import initial_settings, read_initial

        model = read_initial(path, lambda _: None)
        return Beginning(initial_settings(model, adapters=adapters), model.tokenizer)

    return lambda settings: read(settings.train.init_from or "", settings.lora.rank > 0)


def is_sweep(path: Path) -> bool:
    """Whether ``path`` is a sweep's folder, or the plan in it."""
    from cpulm.sweep.plan import PLAN

    try:
        return (path / PLAN).is_file() or (path.name == PLAN and path.is_file())
    except OSError:  # it may not be entered; who reads the run says so
        return False


def continue_sweep(path: Path, *, headless: bool, json: bool) -> None:
    """Train what is left of the sweep at ``path``, and compare.

    Raises:
        DataError: if there is no sweep at ``path``.
    """
    from cpulm.sweep.prepare_plan import resumed

    folder, plan = resumed(path)
    _train(folder, plan, headless=headless, json=json)


def _begin(wish: Wish, *, out: Path | None, dry_run: bool, headless: bool, json: bool) -> None:
    from cpulm.cli.learning_rates import check_rates
    from cpulm.cli.no_effect import without_effect
    from cpulm.interrupts import StopRequest
    from cpulm.sweep.prepare_plan import make_plan, settle
    from cpulm.system.machine import read_machine
    from cpulm.ui.console import say, show_warning
    from cpulm.ui.watch import choose_mode, watch

    mode = choose_mode(json=False, headless=headless or json)
    with watch(mode) as show, StopRequest() as stop:
        plan, settings = make_plan(wish, read_machine(), show=show, should_stop=stop)
    for warning in dict.fromkeys(
        one
        for each in settings
        for check in (check_rates, without_effect)
        for one in check(each, wish.assignments, wish.flags)
    ):
        show_warning(warning)
    if dry_run:
        _show_plan(plan, settings, json=json)
        return
    folder, there = settle(out, settings[0].preset or "sweep", plan, settings)
    say(f"continuing {folder.path}" if there else f"{len(plan.trials)} runs in {folder.path}")
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


def _record(folder: SweepDir, plan: Plan, ranked: tuple[TrialStatus, ...]) -> dict[str, Any]:
    from cpulm.analysis.changes import flatten
    from cpulm.sweep.plan import read_settings

    trials = {trial.name: trial for trial in plan.trials}
    records = []
    for one in ranked:
        values = flatten(read_settings(folder, trials[one.name]).model_dump(mode="json"))
        records.append({**one.__dict__, "values": {key: values[key] for key in plan.keys}})
    return {"sweep": folder.path, "best": ranked[0].run, "trials": records}
