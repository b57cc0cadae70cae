"""Says of a planned run what was chosen, why, and what to expect of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from cpulm.benchmark.run_plan import Candidate, RunPlan, prepared_seconds
from cpulm.data.byte_ngrams import text_curve
from cpulm.data.tokenfile import TokenFolder
from cpulm.estimate.learning_law import USUAL_TEXT, Expectation, LearningLaw, TextCurve, measured_law
from cpulm.estimate.requirements import generations_cost
from cpulm.events import Notice
from cpulm.settings import Settings, changed
from cpulm.training.run import PreparedRun
from cpulm.units import format_bytes, format_count, format_duration

_LONG_PREPARATION = 0.1
"""Part of the time from which on the preparation is spoken of."""
_SHORT_REST = 0.02
"""Part of the time that is not spoken of if it is left."""
_SAMPLE_BYTES, _MOST_READ_SECONDS = 48e6, 10.0
"""Of a sample of the text, and the longest that may be read for it: it is tokenized within seconds."""
_WORTH_A_SAMPLE = 0.25
"""A larger part of the text than this is not worth a sample."""


@dataclass(frozen=True)
class TextLevel:
    """What the law has to know of a text.

    Attributes:
        curve: of the text, by n-grams.
        unique_bytes: of training text.
        bytes_per_token: of the training text.
        law: of texts whose level is measured by n-grams, or by pilots.
        times_measured: how many times as large as the part that was tokenized and measured.
    """

    curve: TextCurve
    unique_bytes: float
    bytes_per_token: float
    law: LearningLaw
    times_measured: float = 1.0

    @classmethod
    def of(cls, tokens: TokenFolder, unique_bytes: float | None = None) -> TextLevel:
        """Measure a text of ``unique_bytes`` by its tokens, or by those of a sample of it."""
        size = float(tokens.meta["train"]["bytes"])
        found = text_curve(tokens)
        curve = TextCurve(*found) if found else USUAL_TEXT
        token_bytes = size / max(1, len(tokens.train))
        if unique_bytes is None:
            return cls(curve, size, token_bytes, measured_law())
        return cls(curve, unique_bytes, token_bytes, measured_law(), unique_bytes / size)

    def expected(self, candidate: Candidate) -> Expectation:
        """The expected loss of a candidate in bits per byte."""
        trained = candidate.passes * self.unique_bytes
        return self.law.expected(candidate.non_embedding, trained, self.unique_bytes, self.curve)

    def expected_of_run(self, plan: RunPlan, prepared: PreparedRun) -> Expectation:
        """The expected loss of the run that the plan led to, by its own measured step."""
        return self.law.expected(
            prepared.plan.params_non_embedding,
            trained_tokens(plan, prepared, self) * self.bytes_per_token,
            self.unique_bytes,
            self.curve,
        )

    def measured(self, factor: float) -> TextLevel:
        """The level by pilots, whose losses were ``factor`` times those expected."""
        curve = replace(self.curve, level=self.curve.level * factor)
        return replace(self, curve=curve, law=self.law.on_one_text())


def sampled(plan: RunPlan) -> Settings | None:
    """The planned settings with a sample of the text; None if a sample would save little time."""
    settings, part = plan.best.settings, _SAMPLE_BYTES / plan.text_bytes
    if part >= _WORTH_A_SAMPLE or plan.read_seconds > _MOST_READ_SECONDS:
        return None
    return changed(settings, data=changed(settings.data, share=settings.data.share * part))


def trained_tokens(plan: RunPlan, prepared: PreparedRun, level: TextLevel) -> float:
    """The tokens that each generation of the prepared run will be trained on, by its measured step."""
    best, train = plan.best, prepared.settings.train
    seconds = (best.trained_seconds + best.spare_seconds) / generations_cost(train.generations)
    most = (train.max_passes or math.inf) * prepared.plan.train_tokens * level.times_measured
    return min(seconds * _tokens_per_second(plan, prepared), most)


def _tokens_per_second(plan: RunPlan, prepared: PreparedRun) -> float:
    return prepared.settings.tokens_per_step / (prepared.plan.step_seconds or plan.best.step_seconds)


def plan_in_words(plan: RunPlan, prepared: PreparedRun, level: TextLevel | None = None) -> list[str]:
    """What was chosen, why, and what to expect of it: a line each, and what else the user should know."""
    settings, tokens = prepared.settings, prepared.tokens
    model, train = settings.model, settings.train
    level = level or TextLevel.of(tokens)
    params = format_count(prepared.plan.params_total)
    speed = format_count(_tokens_per_second(plan, prepared))
    averaged = f", weights averaged over {train.average_fraction:g}" if train.average_fraction else ""
    split = f", BPE dropout {train.bpe_dropout:g}" if train.bpe_dropout else ""
    trained = trained_tokens(plan, prepared, level)
    passes = trained * level.bytes_per_token / level.unique_bytes
    seconds = trained / _tokens_per_second(plan, prepared) * generations_cost(train.generations)
    expected = level.expected_of_run(plan, prepared)
    nats = expected.times(math.log(2) * tokens.bytes_per_token)
    bits = f"{expected.loss:.2f} bits per byte ({expected.low:.2f} to {expected.high:.2f})"
    if tokens.lost_share:
        bits = "bits per byte are not comparable"
    time, size = format_duration(plan.seconds), format_bytes(level.unique_bytes)
    sizes = len(plan.candidates)
    chosen = f"of {sizes} sizes the best for" if sizes > 1 else "for"
    return [
        f"plan: {model.n_layer} layers, {model.n_embd} wide ({params} parameters), context "
        f"{model.block_size}, vocabulary {tokens.vocab_size:,}: {chosen} "
        f"{time}, {size} of text and {speed} tokens a second",
        f"plan: dropout {model.dropout:g}{split}, weight decay {train.weight_decay:g}{averaged}; "
        f"{settings.tokens_per_step:,} tokens a step, rates {train.lr:g} and {train.muon_lr:g}",
        f"expected: validation loss {nats.loss:.2f} nats per token ({nats.low:.2f} to {nats.high:.2f}), "
        f"{bits}; 8 of 10 runs are within",
        *_remarks(plan, passes, seconds),
    ]


def _remarks(plan: RunPlan, passes: float, seconds: float) -> list[str]:
    """What else the user should know of a run of so many passes, which trains for ``seconds``."""
    best = plan.best
    generations = best.settings.train.generations
    remarks = []
    if generations > 1:
        each = format_duration(seconds / generations)
        remarks.append(
            f"{generations} generations, each of about {each}: a later one learns from the text and from the "
            "best before it; what is expected is the first"
        )
    spare = best.trained_seconds + best.spare_seconds - seconds
    if spare > _SHORT_REST * plan.seconds:
        used = format_duration(plan.seconds - spare)
        remarks.append(
            f"the text is short for the time: a model of this size gains little from more than "
            f"{passes:.0f} passes, so the run ends after about {used}; more text would use the rest"
        )
    if passes < 1:
        remarks.append(
            "the time is short for the text, which the run does not see whole: more time would help most"
        )
    return remarks


def preparation_in_words(plan: RunPlan) -> Notice | None:
    """What to say before the text is tokenized, if that takes much of the time or is cut short; else None."""
    size, time, passes = (
        format_bytes(plan.text_bytes / plan.share),
        format_duration(plan.seconds),
        plan.best.passes,
    )
    seconds, whole = plan.prepared_seconds, prepared_seconds(plan.text_bytes / plan.share)
    used = f"{plan.share * 100:.2g}% of {size} of text are used (data.share)"
    if plan.share == 1:
        if seconds < _LONG_PREPARATION * plan.seconds:
            return None
        message = (
            f"tokenizing {size} takes about {format_duration(seconds)} of the {time}: a part of the text "
            "(data.share) would leave more time for training"
        )
        return Notice(level="warning", message=message)
    if (1 - plan.share) * plan.read_seconds >= _LONG_PREPARATION * plan.seconds:
        message = (
            f"{used}, but all of it is read, which takes about {format_duration(seconds)} of the {time}: of "
            "plain text, JSON lines and Parquet hardly more than the share is read"
        )
        return Notice(level="warning", message=message)
    why = (
        f"in {time} the run sees {passes * plan.share * 100:.2g}%"
        if passes < 1
        else f"tokenizing all of it would take about {format_duration(whole)} of the {time}"
    )
    return Notice(level="info", message=f"{used}: {why}")
