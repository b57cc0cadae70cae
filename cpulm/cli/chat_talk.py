"""What ``chat`` does once its options are read: keep the talk, let the model answer, show it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpulm.errors import CpulmError

if TYPE_CHECKING:
    from cpulm.data.records.chat import Message
    from cpulm.data.tokenizer import Tokenizer
    from cpulm.generation.sampling import Sampling
    from cpulm.model.transformer import Transformer

_COMMANDS = {
    "/clear": "forget the talk and begin a new one",
    "/system TEXT": "begin a new talk, before which the model is told TEXT",
}
_CUT = {
    "length": "the answer is longer: /set max_new_tokens 1000",
    "context": "the answer is longer than the context: /clear begins a new talk",
}


@dataclass
class Talk:
    """A model and what was said.

    Attributes:
        messages: of the talk; the system's, if there is one, is the first.
        left_out: whether the oldest messages did not fit the context any more.
        ending: why the last answer ended, as :class:`cpulm.generation.generate.Completion` says it; or
            ``context`` if that is full.
    """

    model: Transformer
    tokenizer: Tokenizer
    sampling: Sampling
    max_new_tokens: int
    seed: int
    messages: list[Message] = field(default_factory=list)
    left_out: bool = False
    ending: str | None = None

    def clear(self) -> None:
        """Forget what was said, but for what the system says."""
        self.messages = [message for message in self.messages if message.role == "system"]
        self.left_out = False

    def set_system(self, text: str) -> None:
        """Begin again after ``text``; nothing if it is empty.

        Raises:
            CpulmError: if the tokenizer lacks a character or a word of it, or it fills the context.
        """
        from cpulm.data.records.chat import Message
        from cpulm.generation.chat import fit_chat

        messages = [Message("system", text)] if text.strip() else []
        if messages:
            fit_chat(self.tokenizer, messages, self.model.settings.block_size, self.max_new_tokens)
        self.messages, self.left_out = messages, False

    def answer(self, text: str) -> Generator[str]:
        """Yield the pieces of the answer to ``text``; what was written until it is closed is said.

        Raises:
            CpulmError: if ``text`` cannot be encoded, or is too long; the talk is as it was.
        """
        from cpulm.data.records.chat import Message, end_ids
        from cpulm.execution.adaptive_threads import threads_for_model
        from cpulm.generation.chat import fit_chat
        from cpulm.generation.generate import begin_texts, stream_text
        from cpulm.ui.console import say

        said = [*self.messages, Message("user", text)]
        block = self.model.settings.block_size
        ids, dropped = fit_chat(self.tokenizer, said, block, self.max_new_tokens)
        generation, (completion,) = begin_texts(
            self.model,
            self.tokenizer,
            ids,
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            seed=self.seed,
            end_ids=end_ids(self.tokenizer),
            records=True,
        )
        if dropped:
            first = 1 if said[0].role == "system" else 0
            del said[first : first + dropped]
            if not self.left_out:
                say(f"(the context of {block} tokens is full: the model forgets the oldest messages)")
            self.left_out = True
        self.messages, self.seed = said, self.seed + 1
        try:
            with threads_for_model(self.model, rows=1) as threads:
                for _, piece in threads.each(stream_text(generation, [completion])):
                    yield piece
        finally:
            if completion.stop_reason is None:
                completion.finish("interrupted")
            full = completion.stop_reason == "length" and len(completion.tokens) < self.max_new_tokens
            self.ending = "context" if full else completion.stop_reason
            self.messages.append(Message("assistant", completion.text))


def begin(
    run: Path, flags: Mapping[str, Any], sampling: Mapping[str, Any], max_new_tokens: int, seed: int
) -> Talk:
    """Check the options, set up the machine, load the model.

    Raises:
        CpulmError: if an option is wrong, there is no model, or it was not trained on conversations.
    """
    from cpulm.ui.console import show_warning, stderr

    with stderr().status(f"loading {run}"):
        from cpulm.api.language_model import load_trained
        from cpulm.generation.chat import require_chat
        from cpulm.generation.sampling import Sampling

        chosen = Sampling(**sampling)
        model, tokenizer, _, _ = load_trained(run, flags, show_warning)
        require_chat(tokenizer, str(run))
        return Talk(model, tokenizer, chosen, max_new_tokens, seed)


def converse(talk: Talk, name: str) -> None:
    """Message, answer, message, answer, until Ctrl-D or /bye. Each answer has the next seed.

    Args:
        name: of the model, to show.
    """
    from cpulm.cli.generate_output import text_writer
    from cpulm.cli.typed_lines import LineHelp, typed_lines, with_setting
    from cpulm.ui.console import say, show_error

    write = text_writer()
    about = "Say something and press Enter; the model answers. Ctrl-C stops the answer."
    greeting = f"{name}: say something and press Enter; /help shows more"
    for line in typed_lines(greeting, LineHelp(about, _COMMANDS, blank_exits=False)):
        try:
            if line.command == "/clear":
                talk.clear()
            elif line.command == "/system":
                talk.set_system(line.rest)
            elif line.command == "/set":
                words = line.rest.split()
                talk.sampling, talk.max_new_tokens = with_setting(talk.sampling, talk.max_new_tokens, words)
            else:
                with contextlib.closing(talk.answer(line.text)) as answer:
                    if not (all(map(write, answer)) and write("\n")):
                        return
                if talk.ending in _CUT:
                    say(f"({_CUT[talk.ending]})")
        except KeyboardInterrupt:
            write("\n")
        except CpulmError as error:
            show_error(error.message, error.hint)
