"""What ``generate`` does once its options are read: load the model, write, show."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpulm.command import typed
from cpulm.errors import CpulmError, SettingsError

if TYPE_CHECKING:
    from cpulm.checkpoints.checkpoint import Checkpoint
    from cpulm.data.tokenizer import Tokenizer
    from cpulm.generation.generate import Completion
    from cpulm.generation.records import RecordPrompt
    from cpulm.generation.sampling import Sampling
    from cpulm.model.transformer import Transformer

SEPARATOR = "\n" + 15 * "-" + "\n"
ENDINGS = {
    "length": "--max-new-tokens reached",
    "end_of_text": "the model ended the text",
    "stop": "stop string reached",
    "interrupted": "stopped",
    "nothing_allowed": "the rules allowed nothing more",
}


@dataclass(frozen=True)
class GenerateRequest:
    """How to write; ``sampling`` holds the fields of ``cpulm.generation.sampling.Sampling``,
    ``rules`` those of ``cpulm.generation.rules.requested.RulesRequest``.

    With ``writes_records`` a model of rows writes records with these ``fields``, and others must have none.
    """

    max_new_tokens: int
    num_samples: int
    stop: tuple[str, ...]
    echo: bool
    sampling: dict[str, Any]
    fields: Mapping[str, str]
    rules: dict[str, Any]
    writes_records: bool


@dataclass(frozen=True)
class Writer:
    """A loaded model, and how it is to write."""

    model: Transformer
    tokenizer: Tokenizer
    checkpoint: Checkpoint
    sampling: Sampling
    request: GenerateRequest

    def record(self) -> RecordPrompt | None:
        """The beginning of the records to write; None if it is text.

        Raises:
            SettingsError: if fields are given, and the model was not trained on rows or does not know them.
        """
        from cpulm.data.reading import Reading
        from cpulm.generation.records import record_prompt

        template = Reading.of(self.checkpoint.settings.data).parsed_template
        if template is None and self.request.fields:
            raise SettingsError(
                "this model has no fields: it was not trained on rows with data.template",
                "give the beginning of the text: --prompt",
            )
        if template is None or not self.request.writes_records:
            return None
        seen = self.checkpoint.data.get("columns", {})
        return record_prompt(self.tokenizer, template, self.request.fields, seen)


class Texts:
    """The texts of one prompt, while they are written."""

    def __init__(self, writer: Writer, prompt: str, seed: int) -> None:
        from cpulm.generation.generate import begin_texts
        from cpulm.generation.prompt import encode_prompt
        from cpulm.generation.rules.requested import RulesRequest, build_rules

        self.prompt, self.seed, self.seconds = prompt, seed, 0.0
        self._model = writer.model
        request, tokenizer, trained = writer.request, writer.tokenizer, writer.checkpoint
        self.record = writer.record()
        if self.record is None:
            starts, records = trained.starts_documents, trained.settings.train.records
            ids = encode_prompt(tokenizer, prompt, starts_documents=starts, begins_records=records)
        else:
            ids, self.prompt = list(self.record.ids), self.record.text
        # What is written before each text.
        self.head = self.prompt if request.echo or self.record is not None else ""
        self.generation, self.completions = begin_texts(
            writer.model,
            tokenizer,
            ids,
            max_new_tokens=request.max_new_tokens,
            sampling=writer.sampling,
            seed=seed,
            num_samples=request.num_samples,
            stop=request.stop,
            records=trained.settings.train.records,
            rules=build_rules(tokenizer, RulesRequest(**request.rules), self.record, request.num_samples),
        )

    def pieces(self) -> Iterator[tuple[int, str]]:
        """Each text's number and next piece; ``seconds`` grows along."""
        from cpulm.execution.adaptive_threads import threads_for_model
        from cpulm.generation.generate import stream_text

        began = time.perf_counter()
        with threads_for_model(self._model, len(self.completions)) as threads:
            for number, piece in threads.each(stream_text(self.generation, self.completions)):
                self.seconds = time.perf_counter() - began
                yield number, piece
        self.seconds = time.perf_counter() - began
        self._report_dead_ends()

    def _report_dead_ends(self) -> None:
        """Say which texts the rules did not let go on.

        Raises:
            SettingsError: if not one token was allowed.
        """
        from cpulm.ui.console import show_warning

        dead = self.generation.rules.dead_ends if self.generation.rules is not None else {}
        if not dead:
            return
        if len(dead) == len(self.completions) and not any(one.tokens for one in self.completions):
            raise SettingsError(
                f"the text cannot begin: {next(iter(dead.values()))}",
                "loosen the rule, or begin with other text",
            )
        count = "1 text" if len(dead) == 1 else f"{len(dead)} texts"
        row, why = next(iter(dead.items()))
        text = self.prompt + self.completions[row].text
        show_warning(f"{count} of {len(self.completions)} could not go on: {why} after {text[-60:]!r}")

    def interrupt(self) -> None:
        """End what has not ended."""
        for completion in self.completions:
            if completion.stop_reason is None:
                completion.finish("interrupted")

    def rate(self, tokens: int) -> float:
        """``tokens`` per second of writing; reading the prompt counts as writing."""
        return tokens / self.seconds if self.seconds else 0.0

    def note(self) -> str:
        """One line on how it went."""
        from cpulm.units import format_duration

        tokens = sum(len(completion.tokens) for completion in self.completions)
        counts = f"{tokens} tokens in {format_duration(self.seconds)}, {self.rate(tokens):.0f} tok/s"
        reasons = {ENDINGS[completion.stop_reason or "interrupted"] for completion in self.completions}
        ending = f" ({reasons.pop()})" if len(reasons) == 1 else ""
        return f"{counts}, {self._model.writes_in}, seed {self.seed}{ending}"


def load(checkpoint: Path, flags: Mapping[str, Any], request: GenerateRequest) -> Writer:
    """Check the request, set up the machine, load the model.

    Args:
        flags: settings of ``runtime`` that were given by options.
    """
    from cpulm.ui.console import show_warning, stderr

    with stderr().status(f"loading {checkpoint}"):
        from cpulm.api.language_model import load_trained
        from cpulm.data.records.chat import knows_chat
        from cpulm.generation.sampling import Sampling

        sampling = Sampling(**request.sampling)
        model, tokenizer, loaded, _ = load_trained(checkpoint, flags, show_warning)
        if knows_chat(tokenizer):
            show_warning(
                f"this model answers messages: `cpulm chat {typed(checkpoint)}`; this continues text"
            )
        return Writer(model, tokenizer, loaded, sampling, request)


def text_writer() -> Callable[[str], bool]:
    """Writes text on stdout; control characters are made harmless first."""
    from cpulm.ui.console import write_text
    from cpulm.ui.terminal_text import harmless

    if sys.stdout.isatty():
        return lambda text: write_text(harmless(text, keep_lines=True))
    return write_text


def _stream(texts: Texts) -> bool:
    """Write the texts one after another, each piece as soon as it is its turn, and a line end.

    Returns:
        False if nobody reads any more.
    """
    write = text_writer()
    separator = SEPARATOR if texts.record is None or "\n" in texts.record.literals else "\n"
    waiting = [""] * len(texts.completions)
    turn = 0
    head = texts.head
    if not write(head):
        return False
    for number, piece in texts.pieces():
        if number != turn:
            waiting[number] += piece
        elif not write(piece):
            return False
        while texts.completions[turn].stop_reason is not None and turn + 1 < len(waiting):
            turn += 1
            write(separator + head + waiting[turn])
    for text in waiting[turn + 1 :]:
        write(separator + head + text)
    return write("\n")


def write_once(writer: Writer, prompt: str, seed: int) -> None:
    """The texts of one prompt on stdout, a line on how it went on stderr."""
    from cpulm.ui.console import stderr, write_text

    texts = Texts(writer, prompt, seed)
    try:
        if _stream(texts):
            stderr().print(texts.note(), style="dim")
    except (KeyboardInterrupt, CpulmError):
        if texts.head or any(one.text for one in texts.completions):
            write_text("\n")  # the error stands on a line of its own
        raise


def write_json(writer: Writer, prompt: str, seed: int) -> None:
    """The texts of one prompt as a JSON list, one object per text."""
    from cpulm.ui.console import print_json, stderr

    texts = Texts(writer, prompt, seed)
    with stderr().status("writing") as status:
        for _ in texts.pieces():
            status.update(f"{texts.generation.made_tokens} of at most {writer.request.max_new_tokens} tokens")
    record = texts.record

    def fields(completion: Completion) -> dict[str, Any]:
        if record is None:
            return {}
        whole = completion.stop_reason == "end_of_text"
        return {"fields": record.values(writer.tokenizer, completion.tokens) if whole else None}

    print_json(
        [
            {
                "sample": number,
                "prompt": texts.prompt,
                "text": completion.text,
                **fields(completion),
                "tokens": len(completion.tokens),
                "tokens_per_second": round(texts.rate(len(completion.tokens)), 1),
                "seed": seed,
                "stop_reason": completion.stop_reason,
            }
            for number, completion in enumerate(texts.completions)
        ]
    )


def converse(writer: Writer, seed: int, name: str) -> None:
    """Prompt, text, prompt, text, until Ctrl-D, /bye or an empty line. Each text has the next seed.

    Args:
        name: of the model, to show.
    """
    from cpulm.cli.typed_lines import LineHelp, typed_lines, with_setting
    from cpulm.ui.console import show_error, stderr, write_text

    about = "Begin a text and press Enter; the model continues it. Ctrl-C stops the model."
    greeting = f"{name}: begin a text and press Enter; /help shows more"
    for line in typed_lines(greeting, LineHelp(about, {}, blank_exits=True)):
        try:
            if line.command:
                most = writer.request.max_new_tokens
                sampling, most = with_setting(writer.sampling, most, line.rest.split())
                request = replace(writer.request, max_new_tokens=most)
                writer = replace(writer, sampling=sampling, request=request)
                continue
            texts = Texts(writer, line.text, seed)
        except CpulmError as error:
            show_error(error.message, error.hint)
            continue
        try:
            if not _stream(texts):
                break
        except KeyboardInterrupt:
            texts.interrupt()
            write_text("\n")
        stderr().print(texts.note(), style="dim")
        seed += 1
