"""What ``train`` and ``resume`` share: calling the training, showing and recording its events."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpulm.cli import several_processes
from cpulm.command import typed
from cpulm.errors import SettingsError, StoppedError
from cpulm.events import Listener, Notice
from cpulm.run_dir import RunDir

if TYPE_CHECKING:
    from cpulm.benchmark.planner import Make
    from cpulm.cli.several_processes import Watched
    from cpulm.distributed.world import World
    from cpulm.settings import Settings
    from cpulm.training.run import PreparedRun, RunOutcome

    Explain = Callable[[PreparedRun], Sequence[str]]


def is_run(path: Path) -> bool:
    """Whether a run with a checkpoint is at ``path``."""
    return bool(RunDir(path).checkpoints())


def begin(
    settings: Settings,
    out: Path | None,
    warnings: Sequence[str],
    block_is_wish: bool,
    make: Make | None = None,
    *,
    headless: bool,
    json: bool,
    overnight: bool,
) -> None:
    """Train a new run and print the path of its best checkpoint; overnight, of its folder once it trains.

    Args:
        warnings: what to say of the settings first.
        block_is_wish: the block size is not the user's, and smaller if the text is.
        make: makes settings of planned values, if the run is to be planned.
    """
    began = time.monotonic()  # loading torch takes seconds, and they are the user's
    if settings.log.tensorboard:
        from cpulm.ui.tensorboard import require_tensorboard

        require_tensorboard()  # before the data is prepared, not after
    if overnight:
        from cpulm.cli import overnight as background
        from cpulm.data.sources import require_lasting_text
        from cpulm.settings.resolve_settings import AUTO

        require_lasting_text([settings.data], "--overnight")
        background.train_overnight(sys.argv[2:], out, AUTO if make else settings.preset or "run", json=json)
        return
    _require_one_process(settings, make)
    several_processes.launch_if_wanted(settings.distributed)
    from cpulm.training import run

    with several_processes.watching(json=json, headless=headless) as watched:
        if watched.resumes:
            _follow(watched, settings, began)
            return
        world, record, show = watched.world, watched.record, watched.show
        _warn(show, warnings)
        settings, explain = _planned(settings, make, show)
        outcome = run.train(
            settings,
            out,
            world=world,
            show=show,
            record=record,
            leave=watched.leave,
            began=began,
            block_is_wish=block_is_wish,
            explain=explain,
        )
        _raise_if_stopped(outcome, world)
    if not json and world.is_main:
        _say_what_next(outcome)


def _require_one_process(settings: Settings, make: Make | None) -> None:
    if make is not None and settings.distributed.needs_launcher:
        raise SettingsError(
            "a plan is for a run of one process, and --nproc or --nnodes asks for several",
            "choose the settings: --preset NAME (`cpulm benchmark --max-time` plans them)",
        )


def _follow(watched: Watched, settings: Settings, began: float) -> None:
    """Train in a process of a machine without the run's folder, while the main one resumes the run."""
    from cpulm.training import run

    text = {"data.source": settings.data.source, "data.val_source": settings.data.val_source}
    outcome = run.resume(
        Path(),
        {},
        text,
        show=watched.show,
        record=watched.record,
        leave=watched.leave,
        began=began,
        world=watched.world,
    )
    _raise_if_stopped(outcome, watched.world)


def go_on(
    path: Path,
    horizon: Mapping[str, Any],
    changes: Mapping[str, Any],
    *,
    headless: bool,
    json: bool,
    overnight: bool,
    without_teacher: bool = False,
) -> None:
    """Resume the run at ``path``; prints what :func:`begin` does.

    Args:
        without_teacher: as in :func:`cpulm.training.run.resume`.
    """
    began = time.monotonic()
    if overnight:
        from cpulm.cli import overnight as background

        more = ["--without-teacher"] if without_teacher else []
        background.resume_overnight(path, horizon, changes, more, json=json)
        return
    several_processes.launch_if_wanted(several_processes.stored(path, changes))
    from cpulm.training import run

    with several_processes.watching(path, json=json, headless=headless) as watched:
        world, record, show = watched.world, watched.record, watched.show
        outcome = run.resume(
            path,
            horizon,
            changes,
            show=show,
            record=record,
            leave=watched.leave,
            began=began,
            without_teacher=without_teacher,
            world=world,
        )
        _raise_if_stopped(outcome, world)
    if not json and world.is_main:
        _say_what_next(outcome)


def _planned(settings: Settings, make: Make | None, show: Listener) -> tuple[Settings, Explain]:
    """Plan a run if ``make`` makes its settings; return them, and what to say once the run is prepared."""
    if make is None:
        return settings, lambda _: ()
    from cpulm.benchmark.expectation import plan_in_words, preparation_in_words
    from cpulm.benchmark.planner import Planner
    from cpulm.cli.benchmark_plan import first_look
    from cpulm.interrupts import StopRequest

    with StopRequest() as stop:
        plan = Planner(make, show=show, should_stop=stop).plan()
        if said := preparation_in_words(plan):
            show(said)
        looked = first_look(plan, show, stop)
    if looked is not None:
        show(Notice(level="info", message="a first look, by a sample of the text:"))
        for line in plan_in_words(plan, *looked):
            show(Notice(level="info", message=line))
    return plan.best.settings, lambda prepared: plan_in_words(plan, prepared)


def rehearse(
    settings: Settings,
    warnings: Sequence[str],
    block_is_wish: bool,
    make: Make | None = None,
    *,
    headless: bool,
    json: bool,
) -> None:
    """Show what a run with ``settings`` would need; arguments as of :func:`begin`."""
    _require_one_process(settings, make)
    several_processes.launch_if_wanted(settings.distributed)
    from cpulm.estimate.repeated_text import passes_warning
    from cpulm.interrupts import StopRequest
    from cpulm.training import run
    from cpulm.training.resume_horizon import require_time
    from cpulm.ui.console import print_json, stdout
    from cpulm.ui.tables import key_values

    # Progress goes to stderr; a dry run's JSON is one object, not a stream of events.
    with several_processes.watching(json=False, headless=headless or json) as watched, StopRequest() as stop:
        world, show = watched.world, watched.show
        _warn(show, warnings)
        settings, explain = _planned(settings, make, show)
        ready = run.prepare_run(
            settings, show=show, should_stop=stop, block_is_wish=block_is_wish, world=world
        )
        require_time(ready.plan, ready.settings)
        lines = explain(ready)
        for line in lines:
            show(Notice(level="info", message=line))
        plan, settings = ready.plan, ready.settings
        warning = passes_warning(_passes(ready), plan.train_tokens, plan.params_non_embedding, settings)
        _warn(show, [warning] if warning and make is None else [])
    if not world.is_main:
        return
    if json:
        print_json({**_needs(ready), "plan": lines})
    else:
        stdout().print(key_values("What this run needs", _needs_in_words(ready)))


def _warn(show: Listener, warnings: Sequence[str]) -> None:
    for message in warnings:
        show(Notice(level="warning", message=message))


def print_settings(settings: Settings, make: Make | None = None) -> None:
    """Print the settings as YAML that ``--config`` reads; those of a plan if ``make`` makes them."""
    from cpulm.settings import settings_yaml
    from cpulm.ui.console import write_text
    from cpulm.ui.watch import watch

    with watch("plain") as show:
        settings, _ = _planned(settings, make, show)
    write_text(settings_yaml(settings))


def show_presets(json: bool) -> None:
    """Show every preset with its size, its needs and the time it is meant for."""
    from cpulm.estimate.preset_sizes import describe_presets
    from cpulm.system.machine import read_machine
    from cpulm.ui.console import print_json, stdout
    from cpulm.ui.tables import rows
    from cpulm.units import format_bytes, format_count

    presets = describe_presets(read_machine())
    if json:
        print_json([preset.__dict__ for preset in presets])
        return
    columns = ["preset", "parameters", "w/o emb.", "tok/step", "memory", "time"]
    table = [
        [
            preset.name,
            format_count(preset.params_total),
            format_count(preset.params_non_embedding),
            format_count(preset.tokens_per_step),
            format_bytes(preset.memory_bytes),
            preset.time,
        ]
        for preset in presets
    ]
    stdout().print(rows("Presets", columns, table))
    stdout().print(
        "\nw/o emb.: parameters without embeddings and head; memory: on this machine;\n"
        "time: an estimate for fp32 on four cores; --dry-run measures it on this machine.\n"
        "Details: docs/presets.md, or --preset NAME --print-config.",
        style="dim",
        highlight=False,
    )


def _raise_if_stopped(outcome: RunOutcome, world: World) -> None:
    """Raise StoppedError if the run was stopped, while the run's other processes can be told."""
    if outcome.reason == "stopped" and not world.is_main:  # its folder is a temporary one
        raise StoppedError(
            f"everything is saved on {world.hosts[0]}", "continue with the same command on all hosts"
        )
    if outcome.reason == "stopped":
        path = outcome.run.path
        raise StoppedError(f"everything is saved in {path}", f"continue with `cpulm resume {typed(path)}`")


def _say_what_next(outcome: RunOutcome) -> None:
    """Say what to type now, and print the path of the best checkpoint, below the dashboard."""
    from cpulm.ui.console import say, write_text_or_warn

    run = outcome.run
    say(f"next:\n{_next_commands(run, outcome)}")
    write_text_or_warn(f"{run.best if run.best.is_file() else run.latest}\n")


def _next_commands(run: RunDir, outcome: RunOutcome) -> str:
    """What to type after a run, one command a line, with what each does."""
    from cpulm.runs.stored_settings import read_settings

    talks = read_settings(run).get("data", {}).get("chat", False)
    place, more = typed(run.path), max(2, 2 * outcome.step)
    commands = {
        f"cpulm chat {place}" if talks else f"cpulm generate {place} --interactive": "try the model",
        f"cpulm analyze {place}": "see what it learned",
    }
    if not outcome.risen and outcome.reason != "patience":
        commands[f"cpulm resume {place} --steps {more}"] = "train it for longer"
    width = max(map(len, commands))
    return "\n".join(f"  {command:<{width}}  # {what}" for command, what in commands.items())


def _passes(ready: PreparedRun) -> float | None:
    from cpulm.estimate.requirements import expected_passes

    return expected_passes(ready.plan, ready.settings.train)


def _needs(ready: PreparedRun) -> dict[str, Any]:
    from cpulm.estimate.requirements import seconds_needed

    plan, runtime = ready.plan, ready.runtime
    return {
        **plan.__dict__,
        "train_seconds": plan.train_seconds,
        "seconds_needed": seconds_needed(plan, ready.settings.train),
        "passes": _passes(ready),
        "vocab_size": ready.tokens.vocab_size,
        "val_tokens": len(ready.tokens.val),
        **runtime.facts(),
        "notes": runtime.notes,
    }


def _teacher_in_words(ready: PreparedRun) -> list[tuple[str, str]]:
    """The generations, the teacher's size, and the part of a step's arithmetic that its forward pass is."""
    from cpulm.model.counts import count, flops_per_token
    from cpulm.units import format_count

    model, vocab, generations = (
        ready.settings.model,
        ready.tokens.vocab_size,
        ready.settings.train.generations,
    )
    pairs = []
    if generations > 1:
        pairs.append(
            ("generations", f"{generations}, which share the time; each from the second on is taught")
        )
    if ready.teacher is not None or generations > 1:
        shape = model if ready.teacher is None else ready.teacher.settings.model
        forward = flops_per_token(shape, vocab) / 3
        part = forward / (forward + flops_per_token(model, vocab))
        size = format_count(count(shape, vocab).total)
        pairs.append(("teacher", f"{size} parameters, about {part:.0%} of a step that it teaches"))
    return pairs


def _needs_in_words(ready: PreparedRun) -> list[tuple[str, str]]:
    from cpulm.estimate.repeated_text import describe_passes
    from cpulm.estimate.requirements import seconds_needed
    from cpulm.units import format_bytes, format_count, format_duration

    plan, runtime = ready.plan, ready.runtime
    step = plan.step_seconds or 0.0
    pairs = [
        (
            "parameters",
            f"{format_count(plan.params_total)}, {format_count(plan.params_non_embedding)} "
            "without embeddings",
        ),
        *_teacher_in_words(ready),
        ("vocabulary", f"{ready.tokens.vocab_size:,} tokens"),
        (
            "training text",
            f"{format_count(plan.train_tokens)} tokens, {format_count(len(ready.tokens.val))} for validation",
        ),
        ("tokens a step", f"{plan.tokens_per_step:,}"),
        (
            "memory",
            f"{format_bytes(plan.memory_bytes)} of "
            f"{format_bytes(ready.machine.memory_available_bytes)} available"
            + (f", for each of {runtime.processes} processes" if runtime.processes > 1 else ""),
        ),
        ("disk", f"up to {format_bytes(plan.disk_bytes)} for checkpoints"),
        (
            "seconds a step",
            f"{step:.3f} measured, eager: {format_count(plan.tokens_per_step / step)} tokens a second",
        ),
    ]
    if plan.steps is not None and plan.train_seconds is not None:
        pairs.append(("steps", f"{plan.steps:,}"))
        pairs.append(("time to finish", f"{format_duration(plan.train_seconds)}, validations not counted"))
    else:
        seconds = seconds_needed(plan, ready.settings.train) or 0.0
        pairs.append(("time to finish", f"{format_duration(seconds)}, about {seconds / step:,.0f} steps"))
    passes, stale = _passes(ready), ready.settings.train.stale_validations
    if passes is not None:
        each = " in each generation" if ready.settings.train.generations > 1 else ""
        pairs.append(("passes", describe_passes(passes) + each))
    if stale is not None:
        pairs.append(("ends early", f"after {stale} validations without a new best loss (train.patience)"))
    pairs += [("choice", note) for note in runtime.notes]
    return pairs
