"""Evaluated models as tables: a list of figures for one, one line each for several."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from cpulm.ui.tables import key_values, rows
from cpulm.ui.terminal_text import figure, harmless, significant
from cpulm.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from cpulm.evaluation.evaluate import CheckpointScore, EvaluationComparison
    from cpulm.evaluation.memorization import MemorizedPassage
    from cpulm.evaluation.multiple_choice import ChoiceScore
    from cpulm.evaluation.samples import SampleScore
    from cpulm.evaluation.standard_error import Figure
    from cpulm.evaluation.text_score import TextScore
    from cpulm.evaluation.text_windows import Protocol

Pairs = list[tuple[str, object]]
_LABEL = 16
_PASSAGE_CHARACTERS = 400
_BETWEEN = 3


def evaluation_table(found: EvaluationComparison, width: int) -> RenderableType:
    """The whole evaluation in ``width`` cells."""
    parts: list[RenderableType] = []
    if len(found.scores) > 1:
        parts += [_side_by_side(found, width), Text()]
    for score in found.scores:
        for title, pairs in _sections(score, alone=len(found.scores) == 1).items():
            parts += [key_values(title, [(name.ljust(_LABEL), value) for name, value in pairs]), Text()]
    return Group(*parts[:-1])


def comparison_note(found: EvaluationComparison) -> str | None:
    """What is comparable among several checkpoints, in a sentence; None for one."""
    if len(found.scores) < 2 or found.scores[0].text is None:
        return None
    if not found.same_text:
        return "each is scored on its own validation text, so they are not comparable: give one text for all"
    if not found.same_tokenizer:
        return "the tokenizers differ: compare bits per byte, not loss or accuracy per token"
    return "best first by bits per byte; differences are paired over passages of the text"


def _side_by_side(found: EvaluationComparison, width: int) -> RenderableType:
    columns: dict[str, Callable[[CheckpointScore], str]] = {
        "checkpoint": lambda one: str(one.checkpoint),
        "bits per byte": lambda one: _text(one, _bits_per_byte),
        "behind the best": lambda one: "" if one.behind is None else "+" + with_error(one.behind),
        "accuracy": lambda one: _text(one, lambda text: per_cent(text.accuracy)),
        "loss": lambda one: _text(one, lambda text: with_error(text.loss)),
        "choices": lambda one: "" if one.choices is None else per_cent(one.choices.accuracy),
        "params": lambda one: format_count(one.params_total),
        "step": lambda one: f"{one.step:,}",
    }
    if not found.same_text:
        del columns["behind the best"]
    if not found.same_tokenizer:
        del columns["loss"], columns["accuracy"]
    cells = {name: [harmless(value(one)) for one in found.scores] for name, value in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    for name in ("step", "params", "loss", "accuracy"):
        if _natural_width(cells) > width:
            cells.pop(name, None)
    return rows("Comparison", list(cells), zip(*cells.values(), strict=True))


def _bits_per_byte(text: TextScore) -> str:
    return "not comparable" if text.text_lost else with_error(text.bits_per_byte)


def _text(one: CheckpointScore, value: Callable[[TextScore], str]) -> str:
    return "" if one.text is None else value(one.text)


def _natural_width(cells: dict[str, list[str]]) -> int:
    widths = [max(cell_len(text) for text in [name, *column]) for name, column in cells.items()]
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def _sections(score: CheckpointScore, *, alone: bool) -> dict[str, Pairs]:
    """The sections about one checkpoint, by title."""
    name = "" if alone else f"{score.checkpoint}: "
    model = (
        f"{score.checkpoint}: step {score.step:,}, {format_count(score.params_total)} parameters, "
        f"{score.tokenizer} vocabulary of {score.vocab_size:,}"
    )
    sections: dict[str, Pairs] = {model: []}
    if score.text is not None:
        sections[model] = _text_pairs(score.text, score.text_name or "", score.protocol)
    if score.choices is not None:
        sections[f"{name}Multiple choice"] = _choice_pairs(score.choices)
    if score.samples is not None:
        sections[f"{name}Samples"] = _sample_pairs(score.samples)
    return sections


def _text_pairs(score: TextScore, name: str, protocol: Protocol) -> Pairs:
    documents = f"{score.documents:,} document{'' if score.documents == 1 else 's'}"
    units = "too little text to estimate it" if score.units < 2 else f"over {score.units} {score.unit}"
    if score.block_tokens is not None and score.units > 1:
        units += f" of {score.block_tokens:,} tokens"
    unknown = f"{score.unknown:.1%} of the tokens" if score.unknown else None
    lost = None
    if score.text_lost:
        lost = f"{score.text_lost:.1%} by the tokenizer: bits per byte are too low, and not comparable"
    return [
        ("text", f"{name}: {format_bytes(score.text_bytes)}, {score.tokens:,} tokens, {documents}"),
        ("loss", f"{with_error(score.loss)} nats per token"),
        ("perplexity", _roughly(score.perplexity)),
        ("bits per byte", with_error(score.bits_per_byte)),
        ("accuracy", f"{per_cent(score.accuracy)} of the tokens were predicted as most likely"),
        ("± is", f"one standard error, {units}"),
        ("context", _protocol(protocol)),
        ("unknown words", unknown),
        ("text lost", lost),
        (
            "speed",
            f"{format_count(score.tokens_per_second)} tok/s, {format_duration(score.seconds)} in total",
        ),
    ]


def _protocol(protocol: Protocol) -> str:
    """Describe the protocol."""
    block, stride = protocol.block_size, protocol.stride
    if stride == block:
        windows = f"adjacent windows of {block} tokens, as in training's validation"
    else:
        least = block - stride
        windows = f"windows of {block} tokens, a new one every {stride}: at least {least} tokens of context"
    return f"{windows}; {'each document separately' if protocol.apart else 'documents in one stream'}"


def _choice_pairs(score: ChoiceScore) -> Pairs:
    return [
        ("questions", f"{score.questions:,}; guessing gets {score.chance:.1%}"),
        ("accuracy", f"{per_cent(score.accuracy)} by the likelihood of the choice"),
        ("per byte", f"{per_cent(score.accuracy_per_byte)} by its likelihood per byte"),
        ("± is", "one standard error, over questions"),
    ]


def _sample_pairs(score: SampleScore) -> Pairs:
    """Each figure of the samples, with that of an equal amount of validation text."""
    other_variety, other = score.reference_variety, score.reference_memorized

    def beside(value: str, reference: str | None) -> str:
        return value if reference is None else f"{value.ljust(8)} (validation text: {reference})"

    pairs: Pairs = [("samples", f"{score.samples} with {score.tokens:,} tokens in total")]
    for n, share in score.variety.distinct.items():
        reference = None if other_variety is None else other_variety.distinct.get(n)
        shown = None if reference is None else f"{reference:.1%}"
        pairs.append((f"distinct-{n}", beside(f"{share:.1%}", shown)))
    if score.variety.repetition is not None:
        reference = None if other_variety is None else other_variety.repetition
        shown = None if reference is None else f"{reference:.1%}"
        pairs.append(("repetition", beside(f"{score.variety.repetition:.1%}", shown)))
    if score.memorized is None:
        pairs.append(("memorized", "unknown without the training data"))
        return pairs
    for n, share in score.memorized.shares.items():
        shown = f"{other.shares[n]:.1%}" if other is not None and n in other.shares else None
        pairs.append((f"{n} tokens", beside(f"{share:.1%}", shown)))
    pairs.append(("", "the share of sequences of this length that occur in the training data"))
    if score.memorized.longest is None:
        shortest = min(score.memorized.ngrams)
        pairs.append(("longest passage", f"none of {shortest} tokens or more"))
    else:
        pairs += _passage_pairs(score.memorized.longest, other.longest if other is not None else None)
    return pairs


def _passage_pairs(passage: MemorizedPassage, reference: MemorizedPassage | None) -> Pairs:
    beside = f" (validation text: {reference.tokens})" if reference is not None else ""
    place = f"training document {passage.document + 1:,}, from token {passage.offset:,}"
    return [
        ("longest passage", f"{passage.tokens} tokens{beside}, in sample {passage.sample + 1}"),
        ("found in", place),
        ("before it", _cut(passage.before, -_PASSAGE_CHARACTERS // 4)),
        ("its text", _cut(passage.text, _PASSAGE_CHARACTERS)),
        ("after it", _cut(passage.after, _PASSAGE_CHARACTERS // 4)),
    ]


def _cut(text: str, most: int) -> str | None:
    """At most this many characters from the beginning, or, if negative, from the end; None if empty."""
    if not text:
        return None
    if len(text) <= abs(most):
        return text
    return f"{text[:most]} …" if most > 0 else f"… {text[most:]}"


def with_error(value: Figure) -> str:
    """``2.3359 ± 0.0210``; without the error if there is none."""
    shown = figure(value.value)
    return shown if value.standard_error is None else f"{shown} ± {_small(value.standard_error)}"


def _roughly(value: Figure) -> str:
    """``10.34 ± 0.22``."""
    shown = significant(value.value, 4)
    return shown if value.standard_error is None else f"{shown} ± {significant(value.standard_error, 2)}"


def per_cent(value: Figure) -> str:
    """``52.1 ± 0.4%``."""
    shown = f"{100 * value.value:.1f}"
    error = "" if value.standard_error is None else f" ± {100 * value.standard_error:.1f}"
    return f"{shown}{error}%"


def _small(value: float) -> str:
    return figure(value) if value >= 0.00005 or value == 0 else significant(value, 2)
