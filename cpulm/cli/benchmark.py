"""``cpulm benchmark``: how fast a preset trains on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flags import (
    COMMON,
    FILES,
    LEARNING,
    MACHINE,
    MODEL,
    READING,
    SHAPE,
    TEXT,
    Assignments,
    Config,
    JsonResult,
    Preset,
    setting_flags,
    with_text,
)

if TYPE_CHECKING:
    from cpulm.benchmark.step_benchmark import Peak, Result
    from cpulm.settings import Settings

_QUICK_SECONDS, _SECONDS = 2.0, 10.0


@setting_flags(
    {
        TEXT: ("data",),
        FILES: READING,
        MODEL: SHAPE,
        LEARNING: ("batch_size", "grad_accum"),
        MACHINE: ("device", "threads", "precision"),
    }
)
def benchmark(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Text to plan for, or to time a pass over.",
            rich_help_panel=COMMON,
            autocompletion=completion.paths,
        ),
    ] = None,
    preset: Preset = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            "--max-time",
            metavar="DURATION",
            help="Plan a training of this length, such as 8h: the best size, and the loss to expect.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    pilots: Annotated[
        bool,
        typer.Option(
            "--pilots", help="With --max-time: refine the plan by short trainings.", rich_help_panel=COMMON
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --max-time: write the plan here, for `cpulm train --config`.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    hosts: Annotated[
        int | None,
        typer.Option(
            "--hosts",
            min=2,
            max=4096,
            metavar="N",
            help="Estimate training on up to N hosts like this one.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            metavar="RATE",
            help="With --hosts: their links, such as 100mbit, or with a ping 100mbit,50ms. [default: 1gbit]",
            rich_help_panel=COMMON,
        ),
    ] = None,
    all_presets: Annotated[
        bool, typer.Option("--all", help="Every preset, side by side.", rich_help_panel=COMMON)
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Fewer updates, no compiling: seconds, not minutes.", rich_help_panel=COMMON
        ),
    ] = False,
    config: Config = None,
    assignments: Assignments = None,
    json: JsonResult = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Measure how fast a preset trains here.

    Runs real updates on a model that is discarded. Shows tokens per second, the parts of a step, the
    speed relative to this machine's fastest matrix product, memory, the time for a pass over your text
    and for the whole run, and what cpulm chose here and why.

    **Examples**

        cpulm benchmark notes/ --preset small

        cpulm benchmark --all

        cpulm benchmark notes/ --max-time 8h --out plan.yaml

        cpulm benchmark --preset small --hosts 8 --network 1gbit
    """
    import os

    from cpulm.errors import SettingsError
    from cpulm.settings.resolve_settings import AUTO, is_given, resolve

    flags = with_text(flags, text)
    _require_sense(all_presets, quick, max_time, pilots or out is not None, hosts, network)
    if all_presets:
        if preset or config or max_time or any(key.startswith("data.") for key in flags):
            raise SettingsError(
                "--all measures every preset", "leave out --preset, --config, the text and --max-time"
            )
        _compare(assignments or [], flags, json=json)
        return
    given: dict[str, Any] = {
        "config": Path(config) if config else None,
        "environ": os.environ,
        "assignments": assignments or (),
        "flags": {**flags, "runtime.compile": "off" if quick else None},
    }
    block_is_wish = not is_given("model.block_size", **given)
    if max_time is not None:
        if preset not in (None, AUTO) or quick:
            raise SettingsError("--max-time plans the settings", "leave out --preset and --quick")
        from cpulm.cli.benchmark_plan import plan

        given["flags"] = {**flags, "train.max_time": _seconds(max_time)}
        plan(
            lambda planned: resolve(AUTO, planned=planned, **given),
            out,
            pilots=pilots,
            block_is_wish=block_is_wish,
            json=json,
        )
        return
    settings = resolve(preset=preset or (None if config else "tiny"), **given)
    seconds = _QUICK_SECONDS if quick else _SECONDS
    with_data = "data.source" in flags
    measured: dict[str, Any] = {"with_data": with_data, "seconds": seconds, "block_is_wish": block_is_wish}
    if hosts is None:
        _measure(settings, **measured, json=json)
    else:
        _measure_hosts(settings, hosts, network or "1gbit", **measured, json=json)


def _require_sense(
    all_presets: bool, quick: bool, max_time: str | None, plans: bool, hosts: int | None, network: str | None
) -> None:
    """Refuse options that have no effect beside the others; ``plans``: --out or --pilots is given."""
    from cpulm.errors import SettingsError

    if quick and all_presets:
        raise SettingsError("--quick has no effect with --all", "leave it out")
    if max_time is None and plans:
        raise SettingsError(
            "--out and --pilots have no effect without --max-time", "give the time to plan: --max-time 8h"
        )
    if network is not None and hosts is None:
        raise SettingsError("--network has no effect without --hosts", "give their number: --hosts 8")
    if hosts is not None and (all_presets or max_time is not None):
        raise SettingsError("--hosts measures one preset", "leave out --all and --max-time")


def _seconds(duration: str) -> float:
    from cpulm.errors import SettingsError
    from cpulm.units import parse_duration

    try:
        return parse_duration(duration)
    except ValueError as error:
        raise SettingsError(f"--max-time: {error}", "write it as 8h or 90min") from error


def _measure(settings: Settings, *, with_data: bool, seconds: float, block_is_wish: bool, json: bool) -> None:
    from cpulm.benchmark.suite import benchmark_preset
    from cpulm.ui.console import print_json, stdout
    from cpulm.ui.tables import key_values
    from cpulm.ui.watch import choose_mode, watch

    with watch(choose_mode(json=False, headless=json)) as show:
        result, peak = benchmark_preset(
            settings, with_data=with_data, seconds=seconds, show=show, block_is_wish=block_is_wish
        )
    if json:
        print_json(_record(result, peak))
        return
    console = stdout()
    for title, pairs in _in_words(result, peak).items():
        console.print(key_values(title, [(name.ljust(16), value) for name, value in pairs]))
        console.print()
    console.print(_breakdown(result))


def _measure_hosts(
    settings: Settings,
    hosts: int,
    network: str,
    *,
    with_data: bool,
    seconds: float,
    block_is_wish: bool,
    json: bool,
) -> None:
    from cpulm.benchmark.suite import benchmark_preset
    from cpulm.cli.benchmark_hosts import show_hosts
    from cpulm.estimate.host_scaling import network_of
    from cpulm.ui.watch import choose_mode, watch

    links = network_of(network)
    with watch(choose_mode(json=False, headless=json)) as show:
        result, _ = benchmark_preset(
            settings, with_data=with_data, seconds=seconds, show=show, block_is_wish=block_is_wish
        )
    show_hosts(result, settings, hosts, links, json=json)


def _record(result: Result, peak: Peak) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(result),
        "tokens_per_second": result.tokens_per_second,
        "steps_per_second": 1 / result.fastest.step_seconds,
        "precision": result.runtime["precision"],
        "gflops": result.gflops,
        "share_of_peak": result.gflops / peak.best,
        "epoch_seconds": result.epoch_seconds,
        "peak": asdict(peak),
    }


def _in_words(result: Result, peak: Peak) -> dict[str, list[tuple[str, object]]]:
    from cpulm.ui.words import share_of_peak
    from cpulm.units import format_bytes, format_count, format_duration

    timing = result.fastest
    products = ", ".join(f"{value:.0f} at {side}" for side, value in peak.gflops.items())
    speed: list[tuple[str, object]] = [
        ("speed", f"{format_count(result.tokens_per_second)} tok/s, {1 / timing.step_seconds:.3g} it/s"),
        ("a step", f"{timing.step_seconds:.3f} s, the median of {timing.steps_measured}"),
        ("precision", str(result.runtime["precision"])),
        ("arithmetic", f"{result.gflops:.0f} GFLOP/s, {share_of_peak(result.gflops / peak.best)}"),
        (
            "memory",
            f"{format_bytes(result.memory_bytes)} at most, "
            f"{format_bytes(result.memory_estimated_bytes)} estimated",
        ),
    ]
    if result.compiled is not None:
        gain = result.timing.step_seconds / result.compiled.step_seconds
        compiled = f"{gain:.2f} x eager's {result.timing.step_seconds:.3f} s"
        speed.insert(3, ("compiled", f"{compiled}, after {format_duration(result.compile_seconds or 0)}"))
    if result.epoch_seconds is not None and result.train_tokens is not None:
        tokens = format_count(result.train_tokens)
        speed.append(("a pass", f"{format_duration(result.epoch_seconds)} over {tokens} tokens"))
    if result.validation_seconds is not None:
        speed.append(("a validation", format_duration(result.validation_seconds)))
    if result.horizon_seconds is not None and result.steps is not None:
        whole = format_duration(result.horizon_seconds)
        speed.append(("the whole run", f"{whole} for {result.steps:,} steps, validations included"))
    sizes = f"{format_count(result.params_total)} parameters, {format_count(result.params_non_embedding)}"
    return {
        f"{result.preset}: {sizes} without embeddings, {result.tokens_per_step:,} tokens a step": speed,
        "This machine": [
            ("matrix products", f"{products} (GFLOP/s by side, fp32)"),
            ("memory copy", f"{peak.memory_gb_per_second:.1f} GB/s"),
            *(("choice", note) for note in result.notes),
        ],
    }


def _breakdown(result: Result) -> Any:
    from cpulm.ui.tables import rows

    timing = result.fastest
    total = sum(timing.parts.values())
    table = [
        [name, f"{seconds * 1000:.1f} ms", f"{seconds / total:.1%}", "█" * round(30 * seconds / total)]
        for name, seconds in timing.parts.items()
    ]
    return rows("Where a step goes", ["part", "time", "share", ""], table)


def _compare(assignments: list[str], flags: dict[str, Any], *, json: bool) -> None:
    from cpulm.benchmark.suite import benchmark_all
    from cpulm.ui.console import print_json, stdout
    from cpulm.ui.tables import rows
    from cpulm.ui.watch import choose_mode, watch
    from cpulm.units import format_bytes, format_count, format_duration

    given = [f"--set={key}={value}" for key, value in flags.items()]
    with watch(choose_mode(json=False, headless=json)) as show:
        records = benchmark_all([*given, *(f"--set={each}" for each in assignments)], show=show)
    if json:
        print_json(records)
        return
    table = [
        [
            record["preset"],
            format_count(record["params_total"]),
            record["precision"],
            f"{record['timing']['step_seconds']:.3g} s",
            format_count(record["tokens_per_second"]),
            f"{record['gflops']:.0f}",
            f"{record['share_of_peak']:.0%}",
            format_bytes(record["memory_bytes"]),
            format_duration(record["horizon_seconds"]) if record["horizon_seconds"] else None,
        ]
        for record in records
    ]
    columns = ["preset", "params", "in", "a step", "tok/s", "GFLOP/s", "of peak", "memory", "whole run"]
    stdout().print(rows("All presets here, eager", columns, table))
    note = "\nof peak: relative to a matrix product in fp32; int8 can exceed it."
    stdout().print(note, style="dim", highlight=False)
