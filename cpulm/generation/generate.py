"""Text from a model: token by token, several texts at once, from a prompt or from nothing.

``Generation`` makes tokens, ``Completion`` turns the tokens of one text into characters and watches for
its end, ``stream_text`` runs the two together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cpulm.data.tokenizer import TextStream, Tokenizer
from cpulm.errors import DataError, SettingsError
from cpulm.generation.sampling import Sampling, sample
from cpulm.model.cache import KVCache
from cpulm.model.transformer import Transformer

LENGTH, END_OF_TEXT, STOP, INTERRUPTED = "length", "end_of_text", "stop", "interrupted"
"""Why a text ended: enough tokens, the end-of-text token, a stop string, the user."""

_JOINING_TOKENS = 16
"""As much of the prompt as can matter to how the text joins it: more bytes than a character has."""


class Generation:
    """The tokens of ``num_samples`` texts that begin with the same prompt: one per text and step.

    Each text draws from a random stream of its own, made from ``seed`` and its number. So text k is the
    same however many others there are, as long as the rounding of a batched matrix product, which
    depends on the batch, does not move a draw over the border between two tokens (about one token in a
    million), and at temperature 0 two logits are not equal to the last bits.

    The context is at most ``block_size`` tokens. Where a token no longer fits, the model reads the last
    half of the context again and goes on behind it: positions start from 0 again, as in training, for
    learned positions and rope alike. A prompt longer than ``block_size`` begins in the same way with its
    last ``block_size // 2`` tokens.

    Args:
        model: in eval mode, or dropout is applied.
        prompt_ids: at least one token.
        max_new_tokens: the most tokens of each text.
        sampling: how tokens are chosen. A repetition penalty counts the whole prompt and text.
        seed: from 0 up.
        num_samples: texts made together.
        eot_id: the token that ends a text, where there is one.

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
        eot_id: int | None = None,
    ) -> None:
        _require_at_least("max_new_tokens", max_new_tokens, 0)
        _require_at_least("num_samples", num_samples, 1)
        _require_at_least("seed", seed, 0)
        if not prompt_ids:
            raise ValueError("a prompt of no tokens")
        self.max_new_tokens = max_new_tokens
        self.made_tokens = 0
        self._model, self._sampling, self._eot_id = model, sampling or Sampling(), eot_id
        self._running = [True] * num_samples
        self._streams = [random.Random(seed << 32 | row) for row in range(num_samples)]

        settings, weight = model.settings, model.wte.weight
        room = min(settings.block_size, len(prompt_ids) + max_new_tokens)
        self._cache = KVCache(settings, num_samples, room, weight.dtype, weight.device)
        # The tokens in the cache, and behind them those it has not seen yet
        self._context = torch.zeros(num_samples, room, dtype=torch.int64, device=weight.device)
        start = list(prompt_ids) if len(prompt_ids) <= room else list(prompt_ids[-(room // 2) :])
        self._context[:, : len(start)] = torch.tensor(start)
        self._filled = len(start)
        self._seen: Tensor | None = None
        if self._sampling.repetition_penalty != 1:
            self._seen = torch.zeros(num_samples, model.vocab_size, dtype=torch.bool)
            self._seen[:, list(prompt_ids)] = True

    def end(self, row: int) -> None:
        """No more tokens of the text ``row``."""
        self._running[row] = False

    def __iter__(self) -> Iterator[list[int | None]]:
        return self

    @torch.inference_mode()
    def __next__(self) -> list[int | None]:
        """One new token of every text; None if the text has ended.

        Raises:
            DataError: if the model's outputs are not finite.
        """
        if self.made_tokens == self.max_new_tokens or not any(self._running):
            raise StopIteration
        unread = self._context[:, self._cache.length : self._filled]
        logits = self._model(unread, cache=self._cache, last_only=True)[:, -1].cpu()
        # Texts that have ended stay in the batch: rows are cheap, and the others keep their place.
        ids = sample(logits, self._sampling, [stream.random() for stream in self._streams], self._seen)
        self._append(ids)
        self.made_tokens += 1
        tokens: list[int | None] = ids.tolist()
        for row, token in enumerate(tokens):
            if not self._running[row]:
                tokens[row] = None
            elif token == self._eot_id:
                self._running[row] = False
        return tokens

    def _append(self, ids: Tensor) -> None:
        """Put one token [B] per text behind the context; where it is full, keep its last half."""
        room = self._context.size(1)
        if self._filled == room:
            kept = room // 2 - 1
            self._context[:, :kept] = self._context[:, room - kept :].clone()
            self._filled = kept
            self._cache.clear()
        self._context[:, self._filled] = ids.to(self._context.device)
        self._filled += 1
        if self._seen is not None:
            self._seen.scatter_(1, ids[:, None], True)


class Completion:
    """One text as it grows.

    ``text`` is what may be shown: whole characters, and nothing that is or may become a stop string.
    ``tokens`` are all tokens made for it, those of the stop string and the end-of-text token included.
    ``stop_reason`` is None until the text has ended.

    Args:
        tokenizer: turns tokens into characters.
        prompt_ids: what the text follows; some tokenizers put a space between.
        stop: strings before which the text ends.

    Raises:
        SettingsError: if a stop string is empty.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        if not all(stop):
            raise SettingsError("a stop string is empty", "give at least one character after --stop")
        self.tokens: list[int] = []
        self.text = ""
        self.stop_reason: str | None = None
        self._eot_id, self._stream = tokenizer.eot_id, TextStream(tokenizer)
        self._stop = tuple(stop)
        self._held = ""
        for token in prompt_ids[-_JOINING_TOKENS:]:
            self._stream.push(token)

    def push(self, token: int) -> str:
        """Take the next token; return the piece of text that can be shown now."""
        self.tokens.append(token)
        if token == self._eot_id:
            return self.finish(END_OF_TEXT)
        return self._show(self._stream.push(token), is_last=False)

    def finish(self, reason: str) -> str:
        """End the text; return what was held back until now."""
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
        """How much of the end of ``text`` may be the beginning of a stop string."""
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
        The text's number and its next piece, as soon as it can be shown.
    """
    for tokens in generation:
        for row, token in enumerate(tokens):
            if token is None:
                continue
            piece = completions[row].push(token)
            if completions[row].stop_reason is not None:
                generation.end(row)
            if piece:
                yield row, piece
    for row, completion in enumerate(completions):
        if completion.stop_reason is None and (piece := completion.finish(LENGTH)):
            yield row, piece


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, starts_documents: bool) -> list[int]:
    """The tokens that a text begins with, at least one.

    Args:
        starts_documents: whether the end-of-text token began documents in the training data. A prompt of
            no tokens is that token then, else a line end where the tokenizer knows it.

    Raises:
        DataError: if the tokenizer does not know a character or a word of the prompt.
    """
    ids = tokenizer.encode(prompt)
    if tokenizer.kind == "word":
        _require_known_words(tokenizer, prompt)
    if ids or starts_documents:
        return ids or [tokenizer.eot_id]
    try:
        return tokenizer.encode("\n") or [tokenizer.eot_id]
    except DataError:  # a vocabulary of characters without the line end
        return [tokenizer.eot_id]


def _require_known_words(tokenizer: Tokenizer, prompt: str) -> None:
    unknown = [word for word in prompt.split() if tokenizer.inner.token_to_id(word) is None]
    if unknown:
        words = ", ".join(repr(word) for word in dict.fromkeys(unknown))
        raise DataError(
            f"the word vocabulary has no {words}",
            "leave it out, or train with data.tokenizer=bpe, which knows every text",
        )


def sample_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    starts_documents: bool,
    should_stop: Callable[[], bool],
) -> str:
    """One text from a model in training, which is left in the mode it was in.

    The global random state is neither read nor moved.

    Returns:
        What follows the prompt, cut short where ``should_stop`` said so.

    Raises:
        DataError: if the tokenizer does not know a character of the prompt.
    """
    prompt_ids = encode_prompt(tokenizer, prompt, starts_documents=starts_documents)
    sampling = Sampling(temperature=temperature, top_k=top_k)
    completion = Completion(tokenizer, prompt_ids)
    was_training = model.training
    model.eval()
    try:
        generation = Generation(
            model,
            prompt_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            eot_id=tokenizer.eot_id,
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
        raise SettingsError(f"{name} = {value} is less than {least}", f"give {least} or more")
