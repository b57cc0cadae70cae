"""Compares runs: which settings differ between them, and the effect of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cpulm.analysis.changes import flatten
from cpulm.analysis.report import Curve, Floats, Report

By = Literal["steps", "tokens", "time", "flops"]

_NO_DIFFERENCE = {"preset", "log.tensorboard"}
_TEXT_KEYS = (
    *("data.source", "data.val_source", "data.val_fraction"),
    *("data.format", "data.document", "data.separator", "data.field", "data.template", "data.where"),
    *("data.share", "data.weights", "data.row_weight", "data.dedup"),
    *("data.errors", "data.encoding", "data.skip_bad"),
)
_NO_EFFECT = (
    "eval.",
    "checkpoint.",
    "sample.",
    "log.",
    "runtime.nice",
    "runtime.allow_sleep",
    "runtime.pause_on_battery",
)
"""Prefixes of settings that do not affect the weights, so they have no effect to report."""
_SAME_RATIO = 1e-4
"""Tolerance of bits per byte over nats per token, a constant of tokenizer and text; both have 7 digits."""


@dataclass(frozen=True)
class ComparedRun:
    """One of the compared runs. ``values`` are its settings for the keys that differ.

    ``behind`` is its distance in bits per byte from the best run on the same validation text.
    """

    name: str
    path: Path
    state: str
    bits_per_byte: float | None
    loss: float | None
    behind: float | None
    best_step: int | None
    steps: int
    tokens: int
    seconds: float
    flops: float | None
    params_total: int | None
    tokens_per_second: float | None
    values: dict[str, Any]
    text_lost: float = 0.0
    val_text: int = 1
    """The number of its validation text; runs on different texts are not comparable."""


@dataclass(frozen=True)
class Effect:
    """The mean and best bits per byte of the runs with one value of a setting."""

    key: str
    value: Any
    runs: int
    mean_bits_per_byte: float
    best_bits_per_byte: float


@dataclass(frozen=True, eq=False)
class RunComparison:
    """Runs by validation text, and on each text best first by bits per byte.

    Runs without a comparable figure are the last on their text.

    ``reports`` are in the order of ``rows``. ``keys`` are the settings that differ. ``effects`` has the
    scores of each of their values, among runs that differ in that setting alone.
    ``notes`` are the limits of the comparison. ``measure`` is the measure of the compared curves:
    ``loss``, or ``bits_per_byte`` if the tokenizers differ.
    """

    rows: tuple[ComparedRun, ...]
    reports: tuple[Report, ...]
    keys: tuple[str, ...]
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]
    measure: Literal["loss", "bits_per_byte"]

    def curve(self, report: Report) -> Curve | None:
        """Return the validation curve that is compared."""
        return report.curves.get("val_loss" if self.measure == "loss" else "val_bits_per_byte")


def compare(reports: Sequence[Report]) -> RunComparison:
    """Compare runs."""
    texts = [_val_text(report) for report in reports]
    best = {
        text: min(_score(r) for r, own in zip(reports, texts, strict=True) if own == text) for text in texts
    }
    ordered = sorted(reports, key=lambda r: (best[_val_text(r)], _val_text(r), _score(r), r.name))
    numbers = {text: number for number, text in enumerate(dict.fromkeys(map(_val_text, ordered)), 1)}
    settings = [flatten(report.settings) for report in ordered]
    names = _names(ordered)
    keys = _differing(settings)
    rows = tuple(
        replace(
            _row(report, name, {key: values.get(key) for key in keys}, best[_val_text(report)]),
            val_text=numbers[_val_text(report)],
        )
        for report, name, values in zip(ordered, names, settings, strict=True)
    )
    same = _same_tokenizer(ordered)
    return RunComparison(
        rows=rows,
        reports=tuple(ordered),
        keys=keys,
        effects=tuple(_effects(rows, keys)),
        notes=tuple(_notes(ordered, same)),
        measure="loss" if same else "bits_per_byte",
    )


def x_values(report: Report, curve: Curve, by: By) -> Floats | None:
    """Return the curve's x values in steps, tokens, seconds or FLOPs; None if unknown."""
    if by == "steps":
        return curve.steps.astype(float)
    if by == "time":
        return curve.seconds
    tokens = curve.tokens.astype(float)
    if by == "tokens":
        return tokens
    each = report.figures.flops_per_token
    return None if each is None else tokens * each


def _val_text(report: Report) -> str:
    """What identifies the validation text: the settings that choose it."""
    settings = flatten(report.settings)
    own = settings.get("data.val_source")
    return repr([settings.get(key) for key in (_TEXT_KEYS[1:2] + _TEXT_KEYS[3:] if own else _TEXT_KEYS)])


def _score(report: Report) -> float:
    """Bits per byte; infinite if there are none, or none that are comparable if text is lost."""
    score = report.figures.best_bits_per_byte
    if score is None or not math.isfinite(score) or report.figures.text_lost:
        return math.inf
    return score


def _names(reports: Sequence[Report]) -> list[str]:
    """Return folder names, or full paths if two runs have the same name."""
    names = [report.name for report in reports]
    return [name if names.count(name) == 1 else str(r.path) for name, r in zip(names, reports, strict=True)]


def _differing(settings: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    keys = dict.fromkeys(key for one in settings for key in one if key not in _NO_DIFFERENCE)
    return tuple(key for key in keys if len({repr(one.get(key)) for one in settings if one}) > 1)


def _row(report: Report, name: str, values: dict[str, Any], best: float) -> ComparedRun:
    figures = report.figures
    score = _score(report)
    each = figures.flops_per_token
    return ComparedRun(
        name=name,
        path=report.path,
        state=report.state,
        bits_per_byte=figures.best_bits_per_byte,
        text_lost=figures.text_lost,
        loss=figures.best_loss,
        behind=score - best if math.isfinite(score) else None,
        best_step=figures.best_step,
        steps=figures.steps,
        tokens=figures.tokens,
        seconds=figures.seconds,
        flops=None if each is None else each * figures.tokens,
        params_total=figures.params_total,
        tokens_per_second=figures.tokens_per_second,
        values=values,
    )


def _effects(rows: Sequence[ComparedRun], keys: Sequence[str]) -> Iterable[Effect]:
    """Yield the effects of each setting, best mean first.

    Only runs count that differ from another run in this setting alone. What the text is has no effect that
    could be compared: the runs are validated on a part of it.
    """
    keys = [key for key in keys if not key.startswith(_NO_EFFECT)]
    scored = [row for row in rows if row.bits_per_byte is not None and math.isfinite(row.bits_per_byte)]
    for key in keys:
        if key in _TEXT_KEYS:
            continue
        alike: dict[str, list[ComparedRun]] = {}
        for row in scored:
            if not row.text_lost:
                alike.setdefault(repr([row.values[other] for other in keys if other != key]), []).append(row)
        groups: dict[str, list[ComparedRun]] = {}
        for runs in alike.values():
            if len({repr(row.values[key]) for row in runs}) > 1:
                for row in runs:
                    groups.setdefault(repr(row.values[key]), []).append(row)
        if not groups:
            continue
        effects = []
        for group in groups.values():
            scores = [row.bits_per_byte for row in group if row.bits_per_byte is not None]
            mean = sum(scores) / len(scores)
            effects.append(Effect(key, group[0].values[key], len(scores), mean, min(scores)))
        yield from sorted(effects, key=lambda effect: effect.mean_bits_per_byte)


def _same_tokenizer(reports: Sequence[Report]) -> bool:
    """Whether all runs have the same tokenizer and validation text, so that losses are comparable.

    Bits per byte are nats per token divided by ln 2 and by the bytes per token. So their ratio is the same
    only if the bytes per token are.
    """
    ratios = [
        report.figures.best_bits_per_byte / report.figures.best_loss
        for report in reports
        if report.figures.best_loss and report.figures.best_bits_per_byte
    ]
    sizes = {report.figures.vocab_size for report in reports if report.figures.vocab_size is not None}
    return len(sizes) <= 1 and (not ratios or max(ratios) - min(ratios) <= _SAME_RATIO * max(ratios))


def _notes(reports: Sequence[Report], same: bool) -> Iterable[str]:
    if not same:
        yield (
            "The runs have different tokenizers, so losses per token are not comparable. The runs are "
            "compared by bits per byte."
        )
    if len({_val_text(report) for report in reports if report.settings}) > 1:
        yield (
            "The runs were validated on different texts, some of which may be harder than others, and are "
            "ranked on each text alone; "
            "`cpulm evaluate` scores several checkpoints on one text."
        )
    if len({report.figures.tokens for report in reports}) > 1:
        yield "The runs were trained on different numbers of tokens: compare the curves, too."
    precisions = {report.figures.precision for report in reports if report.figures.precision}
    if len(precisions) > 1:
        named = "; ".join(
            f"{precision}: {', '.join(one.name for one in reports if one.figures.precision == precision)}"
            for precision in sorted(precisions)
        )
        yield f"The runs used different precisions, which differ slightly in loss: {named}."
    if len({report.figures.device_name for report in reports if report.figures.device_name}) > 1:
        yield "The runs were trained on different machines: their times are not comparable."
    for report in reports:
        if report.figures.text_lost:
            yield (
                f"{report.name}: bits per byte are not comparable, because its tokenizer loses "
                f"{report.figures.text_lost:.1%} of the text."
            )
    missing = [one.name for one in reports if not math.isfinite(_score(one)) and not one.figures.text_lost]
    if missing:
        yield f"Not validated yet: {', '.join(missing)}."
    going = [report.name for report in reports if report.state in ("running", "restarting")]
    if going:
        yield f"Still training: {', '.join(going)}."
