"""Generates text token by token, several texts at once, from a prompt or from nothing.

``Generation`` produces tokens, ``Completion`` turns the tokens of one text into characters and detects its
end, ``stream_text`` connects the two.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from cpulm.data.tokenizer import TextStream, Tokenizer
from cpulm.errors import SettingsError
from cpulm.generation.rules.rule import RuleSet
from cpulm.generation.sampling import Sampling, sample
from cpulm.model.cache import KVCache
from cpulm.model.transformer import Transformer

LENGTH, END_OF_TEXT, STOP, INTERRUPTED = "length", "end_of_text", "stop", "interrupted"
NOTHING_ALLOWED = "nothing_allowed"
"""Why a text ended: maximum number of tokens, end-of-text token, stop string, the user, the rules."""

OnStep = Callable[[list[int | None], Tensor], None]

_JOINING_TOKENS = 16
"""Tokens of the prompt that can affect how the text joins it: more than the bytes of a character."""


class Generation:
    """Yields the tokens of ``num_samples`` texts that continue the same prompt: one per text and step.

    Each text has its own random stream, seeded by ``seed`` and the text's number. So text k does not depend
    on how many others there are, unless the rounding of a batched matrix product, which depends on the
    batch, moves a draw across the border between two tokens (about one token in a million), or at
    temperature 0 two logits differ only in their last bits.

    ``next`` reads the newest tokens and chooses the next ones. :meth:`read` and :meth:`choose` are the halves
    of that, for several generations that run together.

    The context is at most ``block_size`` tokens. If a token no longer fits, the model reads the last half of
    the context again and continues after it: positions start from 0 again, as in training, with learned
    positions and with rope. A prompt longer than ``block_size`` likewise starts with its last
    ``block_size // 2`` tokens.

    Args:
        model: in eval mode; otherwise dropout is applied.
        prompt_ids: at least one token.
        max_new_tokens: the maximum number of tokens of each text.
        sampling: how tokens are chosen. A repetition penalty counts the whole prompt and text.
        seed: 0 or more.
        num_samples: texts generated together.
        end_ids: the tokens that end a text.
        rules: for these texts; None: everything is allowed. Of a text that they allow no token any more, they
            keep the reason, and it ends.
        on_step: called after each step with its tokens and the logits [B, V] that they were chosen from,
            before temperature and the like; what it raises ends the generation.

    Raises:
        SettingsError: if a number is out of its range.
    """

    def __init__(
        self,
        model: Transformer,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        num_samples: int = 1,
        end_ids: Collection[int] = (),
        rules: RuleSet | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        _require_at_least("max_new_tokens", max_new_tokens, 0)
        _require_at_least("num_samples", num_samples, 1)
        _require_at_least("seed", seed, 0)
        if not prompt_ids:
            raise ValueError("an empty prompt")
        self.max_new_tokens = max_new_tokens
        self.made_tokens = 0
        self._model, self._sampling, self._end_ids = model, sampling or Sampling(), end_ids
        self.rules, self._on_step = rules, on_step
        self._running = [True] * num_samples
        self._streams = [random.Random(seed << 32 | row) for row in range(num_samples)]

        settings, weight = model.settings, model.wte.weight
        room = min(settings.block_size, len(prompt_ids) + max_new_tokens)
        self.cache = KVCache(settings, num_samples, room, weight.dtype, weight.device)
        # The tokens in the cache, followed by those not in it yet
        self._context = torch.zeros(num_samples, room, dtype=torch.int64, device=weight.device)
        start = list(prompt_ids) if len(prompt_ids) <= room else list(prompt_ids[-(room // 2) :])
        self._context[:, : len(start)] = torch.tensor(start)
        self._filled = len(start)
        self._seen: Tensor | None = None
        if self._sampling.repetition_penalty != 1:
            self._seen = torch.zeros(num_samples, model.vocab_size, dtype=torch.bool)
            self._seen[:, list(prompt_ids)] = True

    def end(self, row: int) -> None:
        """Generate no more tokens of text ``row``."""
        self._running[row] = False

    @property
    def has_ended(self) -> bool:
        """Whether all texts have ended."""
        return self.made_tokens == self.max_new_tokens or not any(self._running)

    @property
    def unread(self) -> Tensor:
        """The tokens [B, T] that are not in the cache yet."""
        return self._context[:, self.cache.length : self._filled]

    def __iter__(self) -> Iterator[list[int | None]]:
        return self

    def __next__(self) -> list[int | None]:
        """Return one new token of every text; None if the text has ended.

        Raises:
            DataError: if the model's outputs are not finite.
        """
        if self.has_ended:
            raise StopIteration
        return self.choose(self.read(self.unread.size(1)))

    @torch.inference_mode()
    def read(self, most: int) -> Tensor:
        """Read up to ``most`` unread tokens of every text.

        Returns:
            Logits [B, V] behind them.
        """
        unread, rows = self.unread[:, :most], len(self._running)
        if self.made_tokens or rows == 1:
            logits: Tensor = self._model(unread, cache=self.cache, last_only=True)
            return logits[:, -1]
        with self.cache.only_first() as first:  # all texts begin with the same prompt
            logits = self._model(unread[:1], cache=first, last_only=True)
        return logits[:, -1].expand(rows, -1)

    @torch.inference_mode()
    def choose(self, logits: Tensor) -> list[int | None]:
        """Choose the next token of every text from the logits [B, V] behind all that it has.

        Returns, raises:
            As ``next``.
        """
        logits = logits.cpu()
        if self.rules is not None:
            logits = self.rules.apply(logits, self._running)
            self._running = [
                runs and row not in self.rules.dead_ends for row, runs in enumerate(self._running)
            ]
        # Finished texts stay in the batch: rows are cheap, and the others keep their index.
        ids = sample(logits, self._sampling, [stream.random() for stream in self._streams], self._seen)
        self._append(ids)
        self.made_tokens += 1
        new: list[int] = ids.tolist()
        tokens: list[int | None] = [*new]
        for row, token in enumerate(new):
            if not self._running[row]:
                tokens[row] = None
                continue
            if self.rules is not None:
                self.rules.push(row, token)
            if token in self._end_ids:
                self._running[row] = False
        if self._on_step is not None:
            self._on_step(tokens, logits)
        return tokens

    def _append(self, ids: Tensor) -> None:
        """Append one token [B] per text to the context; if it is full, keep only its last half first."""
        room = self._context.size(1)
        if self._filled == room:
            kept = room // 2 - 1
            self._context[:, :kept] = self._context[:, room - kept :].clone()
            self._filled = kept
            self.cache.clear()
        self._context[:, self._filled] = ids.to(self._context.device)
        self._filled += 1
        if self._seen is not None:
            self._seen.scatter_(1, ids[:, None], True)


class Completion:
    """One text as it grows.

    ``text`` is what may be shown: whole characters, and nothing that is or may become a stop string.
    ``tokens`` are all its tokens, including those of the stop string and the end-of-text token.
    ``stop_reason`` is None until the text has ended.

    Args:
        tokenizer: turns tokens into characters.
        prompt_ids: the tokens before the text; some tokenizers put a space between.
        stop: strings before which the text ends.
        end_ids: tokens that end the text; None: the end-of-text token.

    Raises:
        SettingsError: if a stop string is empty.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        end_ids: Collection[int] | None = None,
    ) -> None:
        if not all(stop):
            raise SettingsError("a stop string is empty", "give at least one character after --stop")
        self.tokens: list[int] = []
        self.text = ""
        self.stop_reason: str | None = None
        self._end_ids = {tokenizer.eot_id} if end_ids is None else end_ids
        self._stream = TextStream(tokenizer)
        self._stop = tuple(stop)
        self._held = ""
        for token in prompt_ids[-_JOINING_TOKENS:]:
            self._stream.push(token)

    def push(self, token: int) -> str:
        """Add the next token; return the text that can be shown now."""
        self.tokens.append(token)
        if token in self._end_ids:
            return self.finish(END_OF_TEXT)
        return self._show(self._stream.push(token), is_last=False)

    def finish(self, reason: str) -> str:
        """End the text; return the text held back until now."""
        self.stop_reason = reason
        return self._show(self._stream.flush(), is_last=True)

    def _show(self, characters: str, *, is_last: bool) -> str:
        held = self._held + characters
        found = [place for place in map(held.find, self._stop) if place >= 0]
        if found:
            shown, self._held, self.stop_reason = held[: min(found)], "", STOP
        else:
            keep = 0 if is_last else self._length_of_possible_stop(held)
            shown, self._held = held[: len(held) - keep], held[len(held) - keep :]
        self.text += shown
        return shown

    def _length_of_possible_stop(self, text: str) -> int:
        """How many characters at the end of ``text`` may be the beginning of a stop string."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )


def stream_text(generation: Generation, completions: Sequence[Completion]) -> Iterator[tuple[int, str]]:
    """Run ``generation`` into one completion per text.

    Yields:
        The text's number and its next characters, as soon as they can be shown.
    """
    for tokens in generation:
        yield from show_tokens(generation, completions, tokens)
    yield from show_ends(completions)


def show_tokens(
    generation: Generation, completions: Sequence[Completion], tokens: Sequence[int | None]
) -> Iterator[tuple[int, str]]:
    """Add the newest ``tokens`` of ``generation`` to its texts; yields as :func:`stream_text`."""
    for row, token in enumerate(tokens):
        if token is None:
            if completions[row].stop_reason is None and (piece := completions[row].finish(NOTHING_ALLOWED)):
                yield row, piece
            continue
        piece = completions[row].push(token)
        if completions[row].stop_reason is not None:
            generation.end(row)
        if piece:
            yield row, piece


def show_ends(completions: Sequence[Completion]) -> Iterator[tuple[int, str]]:
    """End the texts that had room for no more tokens; yields as :func:`stream_text`."""
    for row, completion in enumerate(completions):
        if completion.stop_reason is None and (piece := completion.finish(LENGTH)):
            yield row, piece


def begin_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    num_samples: int = 1,
    stop: Sequence[str] = (),
    end_ids: Collection[int] | None = None,
    records: bool = False,
    rules: RuleSet | None = None,
    on_step: OnStep | None = None,
) -> tuple[Generation, list[Completion]]:
    """Return what :func:`stream_text` takes, for texts that continue one prompt.

    Args:
        end_ids: the tokens that end a text; None: the end-of-text token.
        records: whether the model was trained on records: none was longer than its context.
    """
    if records:
        max_new_tokens = min(max_new_tokens, max(1, model.settings.block_size - len(prompt_ids) + 1))
    ends = {tokenizer.eot_id} if end_ids is None else end_ids
    completions = [Completion(tokenizer, prompt_ids, stop, ends) for _ in range(num_samples)]
    generation = Generation(
        model,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        num_samples=num_samples,
        end_ids=ends,
        rules=rules,
        on_step=on_step,
    )
    return generation, completions


def sample_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    end_ids: Collection[int] | None = None,
    should_stop: Callable[[], bool],
) -> str:
    """Generate one text from a model in training; the model's mode is restored.

    The global random state is neither read nor changed.

    Args:
        end_ids: as of :func:`begin_texts`.

    Returns:
        The text after the prompt, cut short if ``should_stop`` returned True.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k)
    ends = {tokenizer.eot_id} if end_ids is None else end_ids
    completion = Completion(tokenizer, prompt_ids, end_ids=ends)
    was_training = model.training
    model.eval()
    try:
        generation = Generation(
            model,
            prompt_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            end_ids=ends,
        )
        pieces = []
        for _, piece in stream_text(generation, [completion]):
            pieces.append(piece)
            if should_stop():
                break
        return "".join(pieces)
    finally:
        model.train(was_training)


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise SettingsError(f"{name} = {value} is less than {least}", f"use {least} or more")
