"""Evaluates checkpoints one after another in the same way and compares them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.load_model import load_model
from cpulm.checkpoints.training_data import same_tokens
from cpulm.command import typed
from cpulm.data.reading import Reading
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.evaluation.multiple_choice import ChoiceScore, Question, answer_questions
from cpulm.evaluation.samples import SampleRequest, SampleScore, score_samples
from cpulm.evaluation.standard_error import Figure
from cpulm.evaluation.text_score import TextScore, difference, score_text
from cpulm.evaluation.text_tokens import Text, open_text, validation_text
from cpulm.evaluation.text_windows import Protocol
from cpulm.events import Listener, Notice
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.interrupts import StopRequest
from cpulm.model.counts import count
from cpulm.settings import ModelSettings, RuntimeSettings
from cpulm.system.machine import read_machine


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, and how.

    Attributes:
        sources: the text; empty for the validation split of each checkpoint's own run.
        reading: how to read the sources; None: as the text of each checkpoint's run was read.
        with_text: whether to score a text at all.
        stride: as in :class:`Protocol`; None for the block size, that is adjacent windows.
        max_tokens: tokens to score from the beginning of the text; None for all.
    """

    sources: tuple[str, ...] = ()
    with_text: bool = True
    reading: Reading | None = None
    stride: int | None = None
    apart: bool = False
    max_tokens: int | None = None
    questions: tuple[Question, ...] = ()
    samples: SampleRequest | None = None


@dataclass(frozen=True)
class CheckpointScore:
    """A checkpoint and its scores.

    ``text_name`` is None if no text was scored. ``behind`` is by how many bits per byte it is worse than the
    best checkpoint; None for the best, for a single one, or if they are not comparable.
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
    """Checkpoints compared, best first if they are comparable.

    ``same_text`` is False if each was scored on its own validation text, ``same_tokenizer`` if losses per
    token are not comparable (bits per byte are).
    """

    scores: tuple[CheckpointScore, ...]
    same_text: bool
    same_tokenizer: bool


@dataclass(frozen=True)
class _Evaluated:
    score: CheckpointScore
    text_identity: object
    tokenizer_json: str


def evaluate_checkpoints(
    checkpoints: Sequence[Path], request: EvaluationRequest, settings: RuntimeSettings, *, show: Listener
) -> EvaluationComparison:
    """Evaluate each checkpoint in the same way; only one model is in memory at a time.

    The model runs as in training, with the compiled kernels if they are available.

    Raises:
        CpulmError: for everything the user can fix, before any computation if it can be known then.
        StoppedError: on a request to stop.
    """
    runtime = choose_runtime(settings, read_machine())
    with StopRequest() as stop:
        if len(checkpoints) > 1:  # an error in the last one is reported before an hour is spent on the first
            for path in checkpoints:
                _check(path, request)
        judged = [_evaluate_one(path, request, runtime, show, stop) for path in checkpoints]
    same_text = len({one.text_identity for one in judged}) == 1
    scores = [one.score for one in judged]
    if request.with_text and same_text:
        scores = _ranked(scores)
    return EvaluationComparison(tuple(scores), same_text, len({one.tokenizer_json for one in judged}) == 1)


def protocol_for(
    model: ModelSettings, request: EvaluationRequest, first_token: int | None, checkpoint: Path
) -> Protocol:
    """Return the protocol of a request for a model.

    Raises:
        SettingsError: if the stride does not fit the model's context.
    """
    block = model.block_size
    stride = block if request.stride is None else request.stride
    if not 1 <= stride <= block:
        raise SettingsError(
            f"--stride {stride} does not fit: {checkpoint} reads windows of {block} tokens",
            f"use 1 to {block}: a smaller stride gives each token more context and takes longer",
        )
    return Protocol(block, stride, request.apart, first_token if request.apart else None)


def _check(path: Path, request: EvaluationRequest) -> None:
    """Refuse a checkpoint that cannot be loaded, or does not fit the request."""
    model, tokenizer, _ = load_model(path, warn=lambda _: None)
    protocol_for(model.settings, request, tokenizer.eot_id, path)


def _evaluate_one(
    path: Path, request: EvaluationRequest, runtime: Runtime, show: Listener, stop: Callable[[], bool]
) -> _Evaluated:
    def warn(message: str) -> None:
        show(Notice(level="warning", message=message))

    model, tokenizer, checkpoint = load_model(path, runtime.device, warn=warn)
    runtime.equip(model)
    starts = checkpoint.starts_documents
    records = checkpoint.settings.train.records
    if records:
        request = replace(request, apart=True)
    protocol = protocol_for(model.settings, request, tokenizer.eot_id if starts or records else None, path)
    data = _data(path, checkpoint, request, show, stop)
    text, identity = _text(path, checkpoint, tokenizer, request, data, show)
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
            begins_records=records,
            emit=show,
            should_stop=stop,
        )
        if request.questions
        else None,
        samples=score_samples(
            model,
            tokenizer,
            request.samples,
            data,
            starts_documents=starts,
            begins_records=records,
            emit=show,
            should_stop=stop,
        )
        if request.samples is not None
        else None,
    )
    return _Evaluated(judged, identity, checkpoint.tokenizer_json)


def _data(
    path: Path, checkpoint: Checkpoint, request: EvaluationRequest, show: Listener, stop: Callable[[], bool]
) -> TokenFolder | None:
    """Open the tokens that the checkpoint was trained on, if the request needs them.

    Raises:
        DataError: if a text is to be scored, none was given, and the tokens no longer exist.
    """
    needs_text = request.with_text and not request.sources
    if not needs_text and request.samples is None:
        return None
    try:
        if not checkpoint.data.get("digest"):
            raise DataError(f"{path} does not record what it was trained on")
        return same_tokens(checkpoint, show, stop)
    except (DataError, SettingsError) as error:
        if needs_text:
            raise DataError(
                f"the validation text of {path} cannot be read: {error.message}",
                f"give a text: `cpulm evaluate {typed(path)} --data TEXT`",
            ) from error
        show(Notice(level="warning", message=f"{error.message}; memorization cannot be checked"))
        return None


def _text(
    path: Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    request: EvaluationRequest,
    data: TokenFolder | None,
    show: Listener,
) -> tuple[Text | None, object]:
    """The text to be scored, and an identity that is equal if two texts are the same."""
    if not request.with_text:
        return None, None
    if request.sources:
        how = request.reading or Reading.of(checkpoint.settings.data)
        text = open_text(request.sources, tokenizer, how, chosen=request.reading is not None, emit=show)
        return text, text.reading
    assert data is not None
    meta = data.meta
    files = tuple((file["name"], file["bytes"]) for file in meta.get("files", ()))
    identity = (files, meta.get("split"), meta["val"]["bytes"], meta["val"]["documents"])
    return validation_text(data, f"the validation split of {path}"), identity


def _ranked(scores: list[CheckpointScore]) -> list[CheckpointScore]:
    """Sort by bits per byte, best first, each with its distance from the best.

    Those whose tokenizers lose text come last: their figures are not comparable.
    """

    def bits(score: CheckpointScore) -> tuple[bool, float]:
        assert score.text is not None
        return bool(score.text.text_lost), score.text.bits_per_byte.value

    best, *others = sorted(scores, key=bits)
    assert best.text is not None
    return [
        best,
        *(
            one
            if one.text.text_lost or best.text.text_lost
            else replace(one, behind=difference(one.text, best.text))
            for one in others
            if one.text
        ),
    ]
