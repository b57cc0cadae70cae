"""Refines a plan by pilots: short trainings of the sizes around its best one, each with a complete schedule.

What they reach, divided by what the law expects of them, is the level of this text for that size of model. It
corrects the law for the long run.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from cpulm.benchmark.expectation import TextLevel
from cpulm.benchmark.planner import Planner
from cpulm.benchmark.run_plan import Candidate, RunPlan
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import SettingsError, StoppedError
from cpulm.events import Event, Listener, Notice, Progress, StepDone, Validated
from cpulm.settings import HORIZONS, Settings, changed
from cpulm.training import run as runs
from cpulm.units import format_duration

_PART, _SECONDS = 1 / 20, (20.0, 300.0)
"""Each pilot takes this part of the planned time, but no less and no more seconds."""
_FEWEST_STEPS = 30


@dataclass(frozen=True)
class Pilot:
    """A short training of a candidate: ``loss`` is in bits per byte, ``factor`` times the expected one."""

    place: int
    n_layer: int
    n_embd: int
    tokens: float
    loss: float
    factor: float


def require_time(seconds: float, sizes: int) -> float:
    """The seconds of each pilot of so many sizes.

    Raises:
        SettingsError: if the time of the plan is too short for them.
    """
    least, most = _SECONDS
    share = min(max(seconds * _PART, least), most)
    if seconds < 2 * share * sizes:
        raise SettingsError(
            f"{format_duration(seconds)} is too short for pilots of {format_duration(share)} each",
            "leave out --pilots",
        )
    return share


def refine(
    planner: Planner, plan: RunPlan, tokens: TokenFolder, level: TextLevel, show: Listener
) -> tuple[RunPlan, TextLevel, list[Pilot]]:
    """Train the pilots; return the plan with the size that is the best by them, and the level they measured.

    Args:
        level: of the text, by n-grams.

    Raises:
        SettingsError: if the time is too short for pilots.
        StoppedError: if a stop is requested.
    """
    sizes = _around(plan)
    share = require_time(plan.seconds, len(sizes))
    message = (
        f"{len(sizes)} pilots of about {format_duration(share)} each: {format_duration(len(sizes) * share)}"
    )
    show(Notice(level="info", message=message))
    pilots = []
    for number, size in enumerate(sizes, 1):
        stage = f"pilot {number} of {len(sizes)}"
        trained = min(size.tokens, share * size.tokens_per_second)
        steps = max(_FEWEST_STEPS, round(trained / size.settings.tokens_per_step))
        settings = planner.settings_for(size.place, steps * size.settings.tokens_per_step)
        steps = max(_FEWEST_STEPS, round(trained / settings.tokens_per_step))
        loss = _trained(_as_pilot(settings, steps), tokens, stage, show)
        seen = steps * settings.tokens_per_step * level.bytes_per_token
        expected = level.law.expected(size.non_embedding, seen, level.unique_bytes, level.curve)
        model = settings.model
        pilots.append(
            Pilot(
                size.place,
                model.n_layer,
                model.n_embd,
                steps * settings.tokens_per_step,
                loss,
                loss / expected.loss,
            )
        )
    factors = {pilot.place: pilot.factor for pilot in pilots}
    best = min(sizes, key=lambda one: one.relative_loss * factors[one.place])
    chosen = replace(plan, best=best)
    return chosen, level.measured(factors[best.place]), pilots


def _around(plan: RunPlan) -> list[Candidate]:
    """The best candidate and its neighbours."""
    at = plan.candidates.index(plan.best)
    return list(plan.candidates[max(0, at - 1) : at + 2])


def _as_pilot(settings: Settings, steps: int) -> Settings:
    none = {
        **dict.fromkeys(HORIZONS),
        "steps": steps,
        "generations": 1,
        "target_loss": None,
        "patience": None,
        "max_passes": None,
    }
    return changed(
        settings,
        train=changed(settings.train, **none),
        eval=changed(settings.eval, every=max(1, steps // 4)),
        sample=changed(settings.sample, max_new_tokens=0),
        checkpoint=changed(settings.checkpoint, keep=0),
        runtime=changed(settings.runtime, compile="off"),
    )


def _trained(settings: Settings, tokens: TokenFolder, stage: str, show: Listener) -> float:
    """Train in a temporary folder; return the best loss in bits per byte."""
    data = changed(settings.data, source=[str(tokens.path)], weights=[], val_source=[], vocab_size=None)
    settings = changed(settings, data=data)
    losses: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            show(Progress(stage=stage, done=event.step, total=settings.train.steps, unit="steps"))
        elif isinstance(event, Validated):
            losses.append(event.bits_per_byte)

    with tempfile.TemporaryDirectory(prefix="cpulm-pilot-") as folder:
        outcome = runs.train(
            settings,
            Path(folder) / "run",
            show=listen,
            record=lambda _: nullcontext(lambda _: None),
            block_is_wish=True,
        )
    steps = settings.train.steps or 0
    show(Progress(stage=stage, done=steps, total=steps, unit="steps", finished=True))
    if outcome.reason == "stopped":
        raise StoppedError("while planning; nothing was written", "run the command again")
    return min(losses)
