"""Writes the presets tiny, small, medium and large, and their table in docs/presets.md.

    python scripts/plan_presets.py

Each is what ``cpulm train TEXT --max-time TIME`` plans on the reference machine for a text that is as long as
what the run reads. The reference is the Intel Xeon of docs/performance.md with int8: its rates are in
:data:`TOKENS_PER_SECOND`. Run this again when the law, the recipe or the planner changes; a test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cpulm.atomic import write_text
from cpulm.benchmark.planner import Elsewhere, Planner
from cpulm.benchmark.run_plan import Candidate
from cpulm.estimate.recipe import SHAPES, recipe, shape_settings
from cpulm.model.counts import flops_per_token
from cpulm.preset_files import presets_folder
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import AUTO, resolve
from cpulm.system.machine import read_machine
from cpulm.units import format_count

TOKENS_PER_SECOND = {"4x192": 19_548, "6x256": 9_309, "6x384": 4_964, "8x512": 2_606}
"""Measured on the reference with the presets of these names, see "A step" in docs/performance.md."""
MEMORY_BYTES = 16 << 30
PAGE = Path(__file__).parent.parent / "docs" / "presets.md"
BEGIN, END = "<!-- by scripts/plan_presets.py -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Promise:
    """A preset: its time, and the text that it is planned for."""

    name: str
    title: str
    time: str
    minutes: int
    text_megabytes: int


PROMISES = (
    Promise("tiny", "a first model", "5 minutes", 5, 100),
    Promise("small", "a good first model", "30 minutes", 30, 100),
    Promise("medium", "an evening's model", "3 hours", 180, 500),
    Promise("large", "a night's model", "8 hours", 480, 500),
)


def reference(text_megabytes: int) -> Elsewhere:
    """The reference machine and a text."""
    measured = {}
    for name, tokens in TOKENS_PER_SECOND.items():
        model, data = (settings := resolve(preset=name)).model, settings.data
        place = next(at for at, shape in enumerate(SHAPES) if shape[:2] == (model.n_layer, model.n_embd))
        measured[place] = tokens * flops_per_token(model, data.vocab_size or 0)
    rates = {
        place: measured[min(measured, key=lambda known: abs(known - place))] for place in range(len(SHAPES))
    }
    machine = replace(read_machine(), memory_available_bytes=MEMORY_BYTES)
    return Elsewhere(machine, rates, text_megabytes * 1e6)


def plan(promise: Promise) -> Candidate:
    """The best run for the time of the promise on the reference machine."""

    def make(planned: Mapping[str, object]) -> Settings:
        return resolve(AUTO, planned=planned, assignments=[f"train.max_time={promise.minutes}m"])

    elsewhere = reference(promise.text_megabytes)
    planner = Planner(make, show=lambda _: None, should_stop=lambda: False, elsewhere=elsewhere)
    return planner.plan().best


def steps(found: Candidate) -> int:
    """The updates of the plan, to two digits."""
    return int(float(f"{found.tokens / found.settings.tokens_per_step:.2g}"))


def preset(promise: Promise, found: Candidate) -> str:
    """The preset's file for a plan."""
    lines = [
        "# Written by scripts/plan_presets.py.",
        "about:",
        f"  order: {1 + PROMISES.index(promise)}",
        f"  title: {promise.title}",
        f"  time: {promise.time}",
        "  why: >",
        f"    What is planned for {promise.time} on the reference machine of docs/presets.md and much text:",
        f"    {format_count(found.tokens)} tokens for {format_count(found.params)} parameters.",
    ]
    planned = [key for key in settings_for_run(found.settings) if key != "train.max_time"]
    values = found.settings.model_dump(mode="json")
    values["train"]["steps"] = steps(found)
    for section in ("model", "data", "train", "eval"):
        lines.append(f"{section}:")
        for key in planned:
            group, _, name = key.partition(".")
            value = values[group][name]
            lines += [f"  {name}: {'null' if value is None else value}"] if group == section else []
    return "\n".join(lines) + "\n"


def settings_for_run(settings: Settings) -> list[str]:
    """The keys that a plan decides, and those of a preset that say what it is."""
    shape = shape_settings(SHAPES[0])
    decided = recipe(settings, 1e9, 1e6, 1.0)
    return [*shape, *decided, "data.tokenizer", "train.optimizer", "train.steps"]


def table(found: Mapping[str, Candidate]) -> str:
    """The table of docs/presets.md."""
    lines = [
        "| preset | time | shape | vocabulary | parameters | tokens per step | steps | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for promise in PROMISES:
        one = found[promise.name]
        model = one.settings.model
        lines.append(
            f"| `{promise.name}` | {promise.time} | {model.n_layer} layers, {model.n_embd} wide, "
            f"{model.block_size} tokens | {one.settings.data.vocab_size:,} | {format_count(one.params)} | "
            f"{one.settings.tokens_per_step:,} | {steps(one):,} | "
            f"{format_count(steps(one) * one.settings.tokens_per_step)} |"
        )
    return "\n".join(lines) + "\n"


def files() -> dict[Path, str]:
    """What the presets and the page have to be."""
    found = {promise.name: plan(promise) for promise in PROMISES}
    text = {
        presets_folder() / f"{promise.name}.yaml": preset(promise, found[promise.name])
        for promise in PROMISES
    }
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    return text | {PAGE: f"{before}{BEGIN}{table(found)}{END}{rest.split(END)[1]}"}


if __name__ == "__main__":
    for path, content in files().items():
        write_text(path, content)
