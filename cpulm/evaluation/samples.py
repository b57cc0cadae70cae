"""Evaluates a model's samples: how varied they are and how much of them is memorized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.evaluation.memorization import Memorized, find_memorized
from cpulm.evaluation.repetition import Variety, variety
from cpulm.events import Listener
from cpulm.execution.adaptive_threads import threads_for_model
from cpulm.generation.generate import Completion, Generation, stream_text
from cpulm.generation.prompt import encode_prompt
from cpulm.generation.sampling import Sampling
from cpulm.model.transformer import Transformer
from cpulm.progress import Stage

_AT_ONCE = 16


@dataclass(frozen=True)
class SampleRequest:
    """How to generate the samples; the fields are those of ``cpulm generate``."""

    count: int
    prompt: str
    max_new_tokens: int
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class SampleScore:
    """The score of samples, and of as much validation text, which was not trained on, for comparison.

    Attributes:
        tokens: of all samples, as the tokenizer encodes their texts.
        memorized: None without the training data, as are the two figures of the validation text.
    """

    samples: int
    tokens: int
    variety: Variety
    memorized: Memorized | None
    reference_variety: Variety | None
    reference_memorized: Memorized | None
    texts: tuple[str, ...]


def score_samples(
    model: Transformer,
    tokenizer: Tokenizer,
    request: SampleRequest,
    data: TokenFolder | None,
    *,
    starts_documents: bool,
    begins_records: bool = False,
    emit: Listener,
    should_stop: Callable[[], bool],
) -> SampleScore:
    """Generate samples and score them.

    Args:
        data: the tokens that the model was trained on; None if they are not available.

    Raises:
        DataError: if the tokenizer lacks a character of the prompt.
        SettingsError: if a number of the request is out of its range.
        StoppedError: if ``should_stop`` returned True.
    """
    prompt = encode_prompt(
        tokenizer, request.prompt, starts_documents=starts_documents, begins_records=begins_records
    )
    texts = _generate_samples(model, tokenizer, request, prompt, emit, should_stop)
    # Encoded as the training text was: a model may spell a word with other tokens than the tokenizer.
    ids = [tokenizer.encode(text) for text in texts]
    if data is None:
        return SampleScore(len(texts), sum(map(len, ids)), variety(texts), None, None, None, tuple(texts))
    passages = _validation_passages(data, [len(text) for text in ids])
    groups = [ids, [tokenizer.encode(text) for text in passages]]
    found = find_memorized(groups, data.train, tokenizer, emit=emit, should_stop=should_stop)
    return SampleScore(
        samples=len(texts),
        tokens=sum(map(len, ids)),
        variety=variety(texts),
        memorized=found[0],
        reference_variety=variety(passages),
        reference_memorized=found[1],
        texts=tuple(texts),
    )


def _generate_samples(
    model: Transformer,
    tokenizer: Tokenizer,
    request: SampleRequest,
    prompt: Sequence[int],
    emit: Listener,
    should_stop: Callable[[], bool],
) -> list[str]:
    texts: list[str] = []
    with Stage(
        "generating samples", request.count * request.max_new_tokens, "tokens", emit, should_stop
    ) as stage:
        for first in range(0, request.count, _AT_ONCE):
            rows = min(_AT_ONCE, request.count - first)
            completions = [Completion(tokenizer, prompt) for _ in range(rows)]
            generation = Generation(
                model,
                prompt,
                max_new_tokens=request.max_new_tokens,
                sampling=request.sampling,
                seed=request.seed + first // _AT_ONCE,
                num_samples=rows,
                end_ids={tokenizer.eot_id},
            )
            made = 0
            with threads_for_model(model, rows) as threads:
                for _ in threads.each(stream_text(generation, completions)):
                    stage.advance(rows * (generation.made_tokens - made))
                    made = generation.made_tokens
            texts += [completion.text for completion in completions]
    return texts


def _validation_passages(data: TokenFolder, lengths: Sequence[int]) -> list[str]:
    """Cut passages of these lengths in tokens from the validation text, spread evenly over it."""
    passages = []
    for number, length in enumerate(lengths):
        room = max(0, len(data.val) - length)
        begin = number * room // max(1, len(lengths) - 1) if len(lengths) > 1 else 0
        passages.append(data.tokenizer.decode(np.asarray(data.val[begin : begin + length]).tolist()))
    return passages
