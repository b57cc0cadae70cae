"""What ``benchmark --max-time`` shows: sizes side by side, what to expect of each, and the plan as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpulm.command import typed
from cpulm.errors import SettingsError

if TYPE_CHECKING:
    from cpulm.benchmark.night_planner import Candidate, NightPlan
    from cpulm.settings import Settings


def plan(base: Settings, duration: str, out: Path | None, *, block_is_wish: bool, json: bool) -> None:
    """Plan a training of ``duration``, show it, and write it to ``out``.

    Raises:
        SettingsError: if the duration is invalid, or ``out`` exists.
    """
    from cpulm.benchmark.night_planner import plan_night
    from cpulm.ui.console import print_json
    from cpulm.ui.watch import choose_mode, watch
    from cpulm.units import parse_duration

    if out is not None and out.exists():
        raise SettingsError(f"{out} exists", "choose another --out")
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise SettingsError(f"--max-time: {error}", "write it as 8h or 90min") from error
    with watch(choose_mode(json=False, headless=json)) as show:
        night = plan_night(base, seconds, show=show, block_is_wish=block_is_wish)
    if out is not None:
        _write(night, out)
    if json:
        print_json(_record(night))
    else:
        _show(night, out)


def _show(night: NightPlan, out: Path | None) -> None:
    from cpulm.ui.console import stdout
    from cpulm.ui.tables import rows
    from cpulm.units import format_count, format_duration

    table = [
        [
            "→" if candidate is night.best else "",
            f"{candidate.settings.model.n_layer} x {candidate.settings.model.n_embd}",
            format_count(candidate.params),
            format_count(candidate.tokens_per_second),
            format_count(candidate.tokens),
            f"{candidate.epochs:.2f}",
            f"{candidate.expected.loss:.2f}",
            f"{candidate.expected.low:.2f} to {candidate.expected.high:.2f}",
            "not comparable" if night.text_lost else f"{candidate.bits_per_byte:.3f}",
        ]
        for candidate in night.candidates
    ]
    columns = ["", "layers x width", "params", "tok/s", "tokens", "passes", "loss", "8 of 10", "bits/byte"]
    console = stdout()
    console.print(rows(f"What {format_duration(night.seconds)} buys here", columns, table))
    console.print(
        f"\nExpected validation losses (nats per token) from {len(night.pilots)} pilot runs, which the law "
        f"L = E + A/N^a + B/D^b\nfits within {night.misfit_nats:.3f} nats; the planned runs are far "
        "longer than the pilots.",
        style="dim",
        highlight=False,
    )
    short = _text_is_short(night)
    if short is not None:
        console.print(f"\n{short}", highlight=False)
    if out is not None:
        console.print(f"\nTrain it: cpulm train --config {typed(out)}")
    else:
        console.print("\n--out plan.yaml writes this plan to a file for `cpulm train --config`.", style="dim")


def _text_is_short(night: NightPlan) -> str | None:
    """What to say if the losses are expected before the time is over; None if they are not."""
    from cpulm.estimate.repeated_text import describe_passes
    from cpulm.units import format_duration

    best = night.best
    seconds = best.tokens / best.tokens_per_second
    if best.epochs < night.most_passes:
        return None
    epochs = best.settings.train.epochs
    end = f"after {describe_passes(epochs)}" if epochs is not None else "with the time"
    return (
        f"The text is short for the time: the loss is expected after {describe_passes(best.epochs)}, about "
        f"{format_duration(seconds)}. The pilots\nsaw no more passes, and nothing is promised beyond them: "
        f"it may overfit. The plan ends {end}.\nMore text would use the time."
    )


def _write(night: NightPlan, out: Path) -> None:
    from cpulm.atomic import write_text
    from cpulm.settings import settings_yaml
    from cpulm.units import format_bits_per_byte

    best = night.best
    bits = format_bits_per_byte(best.bits_per_byte, night.text_lost)
    header = (
        f"# The plan of cpulm benchmark --max-time: of {len(night.candidates)} sizes this one has the\n"
        f"# lowest expected validation loss, {best.expected.loss:.3f} nats per token (8 of 10 times between "
        f"{best.expected.low:.3f} and {best.expected.high:.3f}),\n"
        f"# {bits}, after about {best.tokens:,.0f} tokens. "
        "Train it: cpulm train --config FILE\n"
    )
    write_text(out, header + settings_yaml(best.settings))


def _record(night: NightPlan) -> dict[str, Any]:
    def described(candidate: Candidate) -> dict[str, Any]:
        return {
            "n_layer": candidate.settings.model.n_layer,
            "n_embd": candidate.settings.model.n_embd,
            "params_total": candidate.params,
            "step_seconds": candidate.step_seconds,
            "tokens_per_second": candidate.tokens_per_second,
            "tokens": candidate.tokens,
            "epochs": candidate.epochs,
            "expected_loss": candidate.expected.loss,
            "expected_low": candidate.expected.low,
            "expected_high": candidate.expected.high,
            "expected_bits_per_byte": candidate.bits_per_byte,
        }

    return {
        "seconds": night.seconds,
        "candidates": [described(candidate) for candidate in night.candidates],
        "best": described(night.best),
        "pilots": [pilot.__dict__ for pilot in night.pilots],
        "misfit_nats": night.misfit_nats,
        "text_lost": night.text_lost,
        "most_passes": night.most_passes,
        "settings": night.best.settings.model_dump(mode="json"),
    }
