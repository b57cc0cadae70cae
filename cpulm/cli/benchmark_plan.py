"""What ``benchmark --max-time`` shows: sizes side by side, what to expect of each, and the plan as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpulm.command import typed
from cpulm.errors import SettingsError

if TYPE_CHECKING:
    from cpulm.benchmark.expectation import TextLevel
    from cpulm.benchmark.pilots import Pilot
    from cpulm.benchmark.planner import Make
    from cpulm.benchmark.run_plan import RunPlan
    from cpulm.events import Event, Listener
    from cpulm.training.run import PreparedRun


def plan(make: Make, out: Path | None, *, pilots: bool, block_is_wish: bool, json: bool) -> None:
    """RunPlan a training, show the plan, and write it to ``out``.

    Args:
        make: makes a run's settings of planned values.
        pilots: whether to refine the plan by short trainings.

    Raises:
        SettingsError: if ``out`` exists.
    """
    from cpulm.benchmark.expectation import TextLevel, plan_in_words, preparation_in_words
    from cpulm.benchmark.pilots import refine, require_time
    from cpulm.benchmark.planner import Planner
    from cpulm.interrupts import StopRequest
    from cpulm.training.run import prepare_run
    from cpulm.ui.console import print_json
    from cpulm.ui.watch import choose_mode, watch

    if out is not None and out.exists():
        raise SettingsError(f"{out} exists", "choose another --out")
    trained: list[Pilot] = []
    with watch(choose_mode(json=False, headless=json)) as show:
        with StopRequest() as stop:
            planner = Planner(make, show=show, should_stop=stop)
            if pilots:
                require_time(planner.seconds, sizes=1)
            found = planner.plan()
            if said := preparation_in_words(found):
                show(said)
            looked = first_look(found, show, stop)
            if looked is None:
                settings = found.best.settings
                ready = prepare_run(settings, show=show, should_stop=stop, block_is_wish=block_is_wish)
                looked = ready, TextLevel.of(ready.tokens)
            ready, level = looked
        if pilots:
            before = found.best
            found, level, trained = refine(planner, found, ready.tokens, level, show)
            if found.best is not before:
                with StopRequest() as stop:
                    ready = prepare_run(
                        found.best.settings, show=show, should_stop=stop, block_is_wish=block_is_wish
                    )
    lines = plan_in_words(found, ready, level)
    if out is not None:
        _write(found, lines, out)
    if json:
        print_json(_record(found, level, lines, trained))
    else:
        _show(found, level, lines, trained, out)


def first_look(
    found: RunPlan, show: Listener, stop: Callable[[], bool]
) -> tuple[PreparedRun, TextLevel] | None:
    """Prepare a planned run with a sample of its text, and measure that; None if the whole is soon read."""
    from cpulm.benchmark.expectation import TextLevel, sampled
    from cpulm.events import Progress
    from cpulm.training.run import prepare_run

    settings = sampled(found)
    if settings is None:
        return None

    def quietly(event: Event) -> None:
        if isinstance(event, Progress):  # what is held out and left out of a sample is no matter
            show(event)

    ready = prepare_run(settings, show=quietly, should_stop=stop)
    return ready, TextLevel.of(ready.tokens, found.text_bytes)


def _show(found: RunPlan, level: TextLevel, lines: list[str], pilots: list[Pilot], out: Path | None) -> None:
    from cpulm.benchmark.planner import MOST_TOKENS_PER_PARAMETER
    from cpulm.ui.console import stdout
    from cpulm.ui.tables import rows
    from cpulm.units import format_count, format_duration

    table = []
    for candidate in found.candidates:
        expected = level.expected(candidate)
        model = candidate.settings.model
        table.append(
            [
                "→" if candidate is found.best else "",
                f"{model.n_layer} x {model.n_embd}",
                format_count(candidate.params),
                format_count(candidate.tokens_per_second),
                format_count(candidate.tokens),
                f"{candidate.passes:.2f}",
                f"{expected.loss:.3f}",
                f"{expected.low:.2f} to {expected.high:.2f}",
            ]
        )
    columns = ["", "layers x width", "params", "tok/s", "tokens", "passes", "bits/byte", "8 of 10"]
    console = stdout()
    console.print(rows(f"What {format_duration(found.seconds)} buys here", columns, table))
    if len(found.candidates) > 1 and found.candidates[0].place:
        limit = f"{MOST_TOKENS_PER_PARAMETER:g} tokens a parameter"
        console.print(
            f"Smaller models would train on more than {limit}: a larger one is better.", style="dim"
        )
    console.print()
    for pilot in pilots:
        console.print(
            f"pilot {pilot.n_layer} x {pilot.n_embd}, {format_count(pilot.tokens)} tokens: {pilot.loss:.3f} "
            f"bits per byte, {pilot.factor:.2f} times the expected",
            highlight=False,
        )
    for line in lines:
        console.print(line, highlight=False)
    if out is not None:
        console.print(f"\nTrain it: cpulm train --config {typed(out)}")
    else:
        console.print("\n--out plan.yaml writes this plan to a file for `cpulm train --config`.", style="dim")


def _write(found: RunPlan, lines: list[str], out: Path) -> None:
    from cpulm.atomic import write_text
    from cpulm.settings import settings_yaml

    header = "".join(f"# {line}\n" for line in (*lines, f"Train it: cpulm train --config {typed(out)}"))
    write_text(out, header + settings_yaml(found.best.settings))


def _record(found: RunPlan, level: TextLevel, lines: list[str], pilots: list[Pilot]) -> dict[str, Any]:
    candidates = []
    for candidate in found.candidates:
        expected, model = level.expected(candidate), candidate.settings.model
        candidates.append(
            {
                "n_layer": model.n_layer,
                "n_embd": model.n_embd,
                "params_total": candidate.params,
                "step_seconds": candidate.step_seconds,
                "tokens_per_second": candidate.tokens_per_second,
                "tokens": candidate.tokens,
                "passes": candidate.passes,
                "expected_bits_per_byte": expected.loss,
                "expected_low": expected.low,
                "expected_high": expected.high,
            }
        )
    return {
        "seconds": found.seconds,
        "text_bytes": found.text_bytes,
        "candidates": candidates,
        "best": candidates[found.candidates.index(found.best)],
        "pilots": [pilot.__dict__ for pilot in pilots],
        "lines": lines,
        "settings": found.best.settings.model_dump(mode="json"),
    }
