"""An evaluation from start to end: checkpoints loaded one after another, judged alike, put side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.load_model import load_model
from cpulm.checkpoints.training_data import same_tokens
from cpulm.data.readers import Errors
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.evaluation.multiple_choice import ChoiceScore, Question, answer_questions
from cpulm.evaluation.samples import SampleRequest, SampleScore, judge_samples
from cpulm.evaluation.standard_error import Figure
from cpulm.evaluation.text_score import TextScore, difference, score_text
from cpulm.evaluation.text_tokens import Text, text_of, validation_text
from cpulm.evaluation.text_windows import Protocol
from cpulm.events import Listener, Notice
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.interrupts import StopRequest
from cpulm.model.counts import count
from cpulm.settings import ModelSettings, RuntimeSettings
from cpulm.system.machine import read_machine


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be judged, and how.

    Attributes:
        sources: the text; empty for the validation split of each checkpoint's own run.
        with_text: whether a text is to be scored at all.
        stride: as in :class:`Protocol`; None for the block size: windows side by side.
        max_tokens: of the text, from its beginning; None for all.
    """

    sources: tuple[str, ...] = ()
    with_text: bool = True
    field: str = "text"
    errors: Errors = "strict"
    stride: int | None = None
    apart: bool = False
    max_tokens: int | None = None
    questions: tuple[Question, ...] = ()
    samples: SampleRequest | None = None


@dataclass(frozen=True)
class CheckpointScore:
    """A checkpoint and what it came to.

    ``text_name`` is None if no text was scored. ``behind`` are the bits per byte by which it is worse than
    the best checkpoint beside it; None for that one, where they do not compare, or where it is alone.
    """

    checkpoint: Path
    step: int
    params_total: int
    vocab_size: int
    tokenizer: str
    protocol: Protocol
    text_name: str | None
    text: TextScore | None
    choices: ChoiceScore | None
    samples: SampleScore | None
    behind: Figure | None = None


@dataclass(frozen=True)
class EvaluationComparison:
    """Checkpoints side by side, best first where they compare.

    ``same_text`` is False if each was judged on a validation text of its own, ``same_tokenizer`` where
    losses per token do not compare: bits per byte do.
    """

    scores: tuple[CheckpointScore, ...]
    same_text: bool
    same_tokenizer: bool


@dataclass(frozen=True)
class _Judged:
    score: CheckpointScore
    text_identity: object
    tokenizer_json: str


def evaluate_checkpoints(
    checkpoints: Sequence[Path], request: EvaluationRequest, settings: RuntimeSettings, *, show: Listener
) -> EvaluationComparison:
    """Judge each checkpoint alike; only one model is in memory at a time.

    The model is computed as training computes it, in the compiled kernels where there are any.

    Raises:
        CpulmError: for everything the user can mend, before anything is computed where it can be known.
        StoppedError: on a request to stop.
    """
    runtime = choose_runtime(settings, read_machine())
    with StopRequest() as stop:
        if len(checkpoints) > 1:  # the last one's mistake is said before the first one's hour
            for path in checkpoints:
                _check(path, request)
        judged = [_judge(path, request, runtime, show, stop) for path in checkpoints]
    same_text = len({one.text_identity for one in judged}) == 1
    scores = [one.score for one in judged]
    if request.with_text and same_text:
        scores = _ranked(scores)
    return EvaluationComparison(tuple(scores), same_text, len({one.tokenizer_json for one in judged}) == 1)


def protocol_for(
    model: ModelSettings, request: EvaluationRequest, first_token: int | None, checkpoint: Path
) -> Protocol:
    """The protocol of a request for a model.

    Raises:
        SettingsError: if the stride is none that the model's context allows.
    """
    block = model.block_size
    stride = block if request.stride is None else request.stride
    if not 1 <= stride <= block:
        raise SettingsError(
            f"--stride {stride} does not fit: {checkpoint} reads windows of {block} tokens",
            f"give 1 to {block}: a smaller stride gives each token more context and takes longer",
        )
    return Protocol(block, stride, request.apart, first_token if request.apart else None)


def _check(path: Path, request: EvaluationRequest) -> None:
    """Refuse a checkpoint that cannot be loaded, or does not fit the request."""
    model, tokenizer, _ = load_model(path, warn=lambda _: None)
    protocol_for(model.settings, request, tokenizer.eot_id, path)


def _judge(
    path: Path, request: EvaluationRequest, runtime: Runtime, show: Listener, stop: Callable[[], bool]
) -> _Judged:
    def warn(message: str) -> None:
        show(Notice(level="warning", message=message))

    model, tokenizer, checkpoint = load_model(path, runtime.device, warn=warn)
    runtime.equip(model)
    starts = checkpoint.starts_documents
    protocol = protocol_for(model.settings, request, tokenizer.eot_id if starts else None, path)
    data = _data(path, checkpoint, request, show, stop)
    text, identity = _text(path, tokenizer, request, data, show)
    score = None
    if text is not None:
        score = score_text(
            model,
            tokenizer,
            text,
            protocol,
            runtime,
            name=str(path),
            max_tokens=request.max_tokens,
            emit=show,
            should_stop=stop,
        )
    judged = CheckpointScore(
        checkpoint=path,
        step=checkpoint.step,
        params_total=count(model.settings, model.vocab_size).total,
        vocab_size=model.vocab_size,
        tokenizer=tokenizer.kind,
        protocol=protocol,
        text_name=None if text is None else text.name,
        text=score,
        choices=answer_questions(
            model,
            tokenizer,
            request.questions,
            runtime,
            starts_documents=starts,
            emit=show,
            should_stop=stop,
        )
        if request.questions
        else None,
        samples=judge_samples(
            model, tokenizer, request.samples, data, starts_documents=starts, emit=show, should_stop=stop
        )
        if request.samples is not None
        else None,
    )
    return _Judged(judged, identity, checkpoint.tokenizer_json)


def _data(
    path: Path, checkpoint: Checkpoint, request: EvaluationRequest, show: Listener, stop: Callable[[], bool]
) -> TokenFolder | None:
    """The tokens that the checkpoint was trained on, where the request needs them.

    Raises:
        DataError: if a text is to be scored, none was given, and they are gone.
    """
    needs_text = request.with_text and not request.sources
    if not needs_text and request.samples is None:
        return None
    try:
        if not checkpoint.data.get("digest"):
            raise DataError(f"{path} does not say what it was trained on")
        return same_tokens(checkpoint, show, stop)
    except (DataError, SettingsError) as error:
        if needs_text:
            raise DataError(
                f"the validation text of {path} is not at hand: {error.message}",
                f"give a text: cpulm evaluate --checkpoint {path} TEXT",
            ) from error
        show(Notice(level="warning", message=f"{error.message}; what is known by heart cannot be told"))
        return None


def _text(
    path: Path, tokenizer: Tokenizer, request: EvaluationRequest, data: TokenFolder | None, show: Listener
) -> tuple[Text | None, object]:
    """The text to be scored, and what is equal where two texts are the same."""
    if not request.with_text:
        return None, None
    if request.sources:
        text = text_of(request.sources, tokenizer, field=request.field, errors=request.errors, emit=show)
        return text, None
    assert data is not None
    meta = data.meta
    files = tuple((file["name"], file["bytes"]) for file in meta.get("files", ()))
    identity = (files, meta.get("split"), meta["val"]["bytes"], meta["val"]["documents"])
    return validation_text(data, f"the validation split of {path}"), identity


def _ranked(scores: list[CheckpointScore]) -> list[CheckpointScore]:
    """Best first by bits per byte, each with how far it is behind the best."""

    def bits(score: CheckpointScore) -> float:
        assert score.text is not None
        return score.text.bits_per_byte.value

    best, *others = sorted(scores, key=bits)
    assert best.text is not None
    return [best, *(replace(one, behind=difference(one.text, best.text)) for one in others if one.text)]
