"""A trained model for Python programs: it writes text, and measures its loss on text."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpulm.checkpoints.checkpoint import Checkpoint
from cpulm.checkpoints.load_model import load_model
from cpulm.data.records.chat import end_ids, messages_in
from cpulm.data.records.values import RowError
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.evaluation.text_score import score_text
from cpulm.evaluation.text_tokens import text_of
from cpulm.evaluation.text_windows import Protocol
from cpulm.execution.adaptive_threads import threads_for_model
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.writing import prepare_to_write
from cpulm.generation.chat import encode_chat, require_chat
from cpulm.generation.generate import begin_texts, stream_text
from cpulm.generation.prompt import encode_prompt
from cpulm.generation.sampling import Sampling
from cpulm.model.counts import count
from cpulm.model.transformer import Transformer
from cpulm.settings import Settings
from cpulm.settings.resolve_settings import resolve
from cpulm.system.machine import read_machine

LOG = logging.getLogger("cpulm")


@dataclass(frozen=True)
class TextLoss:
    """A model's loss on a text, in nats per token, and the same in bits per byte; over ``scored`` tokens."""

    loss: float
    bits_per_byte: float
    scored: int


def load(path: str | os.PathLike[str]) -> Model:
    """Load a trained model; what is worth knowing is logged to the logger ``cpulm``.

    Args:
        path: a run's folder (its ``best.pt``, else the newest checkpoint) or a checkpoint.

    Raises:
        CpulmError: if there is no model, or it is damaged.
    """
    return Model(str(path), *load_trained(Path(path), {}, LOG.warning))


def load_trained(
    path: Path, flags: Mapping[str, Any], warn: Callable[[str], None]
) -> tuple[Transformer, Tokenizer, Checkpoint, Runtime]:
    """Set up the machine by ``flags``, settings of ``runtime``, and load a model that is to write on it.

    It writes in int8 where that is possible, unless the precision fp32 is set; its losses are in fp32.

    Raises:
        CpulmError: as :func:`load`.
    """
    if flags.get("runtime.precision") == "bf16":
        raise SettingsError(
            "--precision bf16 is for training; text is written in fp32 or int8", "leave it out"
        )
    requested = resolve(environ=os.environ, flags=flags).runtime
    runtime = choose_runtime(requested.model_copy(update={"precision": "fp32"}), read_machine())
    model, tokenizer, checkpoint = load_model(path, runtime.device, warn=warn)
    prepare_to_write(model, runtime, requested.precision)
    if flags.get("runtime.precision") == "int8" and model.writes_in != "int8":
        warn("it writes in fp32: int8 needs the compiled kernels, and widths that are multiples of 32")
    return model, tokenizer, checkpoint, runtime


class Model:
    """A trained model, as :func:`load` gives it.

    Attributes:
        name: what it was loaded from.
        settings: those of its run.
        params_total: its parameters.
        vocab_size: of its tokenizer.
        block_size: the most tokens that it sees at once.
    """

    def __init__(
        self, name: str, model: Transformer, tokenizer: Tokenizer, checkpoint: Checkpoint, runtime: Runtime
    ) -> None:
        self.name = name
        self.settings: Settings = checkpoint.settings
        self.params_total = count(model.settings, model.vocab_size).total
        self.vocab_size, self.block_size = model.vocab_size, model.settings.block_size
        self._model, self._tokenizer, self._runtime = model, tokenizer, runtime
        self._starts_documents = checkpoint.starts_documents

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """Write a text, as ``cpulm generate`` does; the options are those of the command.

        Args:
            prompt: what the text begins with; empty for the start of a document.
            top_k: 0 or None for all tokens.
            seed: the same seed gives the same text; None for a random one.
            stop: strings before which the text ends.

        Returns:
            The text after the prompt.

        Raises:
            CpulmError: if an option is out of its range, or the tokenizer lacks a character of the prompt.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        return "".join(self._pieces(self._prompt(prompt), max_new_tokens, sampling, seed, stop))

    def stream(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """As :meth:`generate`; yields each piece of the text as soon as it is written."""
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        return self._pieces(self._prompt(prompt), max_new_tokens, sampling, seed, stop)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """Answer the last message of a conversation; options as of :meth:`generate`.

        Args:
            messages: each with ``role`` (``system``, ``user``, ``assistant``) and ``content``.

        Returns:
            What the assistant says.

        Raises:
            CpulmError: as :meth:`generate`; or if the model was not trained on conversations, or a message
                cannot be used or the conversation is longer than the context.
        """
        require_chat(self._tokenizer, self.name)
        try:
            ids = encode_chat(self._tokenizer, messages_in(messages))
        except RowError as error:
            raise DataError(f"messages: {error}", error.hint) from error
        if len(ids) > self.block_size:
            raise DataError(
                f"the conversation has {len(ids)} tokens; the model sees {self.block_size}",
                "leave out the oldest messages",
            )
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        ends = end_ids(self._tokenizer)
        return "".join(self._pieces(ids, max_new_tokens, sampling, seed, stop, ends))

    def _prompt(self, prompt: str) -> list[int]:
        records = self.settings.train.records
        starts = self._starts_documents
        return encode_prompt(self._tokenizer, prompt, starts_documents=starts, begins_records=records)

    def _pieces(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        seed: int | None,
        stop: Sequence[str],
        ends: Collection[int] | None = None,
    ) -> Iterator[str]:
        generation, completions = begin_texts(
            self._model,
            self._tokenizer,
            ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=random.randrange(10**6) if seed is None else seed,
            stop=[stop] if isinstance(stop, str) else stop,
            end_ids=ends,
            records=self.settings.train.records or ends is not None,
        )
        with threads_for_model(self._model, len(completions)) as threads:
            for _, piece in threads.each(stream_text(generation, completions)):
                yield piece

    def loss(self, text: str) -> TextLoss:
        """Score ``text`` as one document, as ``cpulm evaluate --data FILE`` does a file of it.

        Raises:
            CpulmError: if there is no token to predict, or the tokenizer lacks a character of it.
        """
        apart = self.settings.train.records
        scored = score_text(
            self._model,
            self._tokenizer,
            text_of(text, self._tokenizer),
            Protocol(self.block_size, self.block_size, apart, self._tokenizer.eot_id if apart else None),
            self._runtime,
            name=self.name,
            max_tokens=None,
            emit=lambda _: None,
            should_stop=lambda: False,
        )
        return TextLoss(scored.loss.value, scored.bits_per_byte.value, scored.scored)
