"""``cpulm evaluate``: how good a model is, in figures that can be trusted and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpulm.cli.options import MACHINE, OUTPUT, TEXT, Device, Errors, Field, Headless, Threads
from cpulm.cli.resume import complete_run

if TYPE_CHECKING:
    from cpulm.evaluation.evaluate import CheckpointScore, EvaluationComparison, EvaluationRequest

QUESTIONS, SAMPLES = "Questions", "Samples"
_SAMPLING: dict[str, Any] = {
    "--prompt": "",
    "--max-new-tokens": 256,
    "--temperature": 0.8,
    "--top-k": 50,
    "--seed": 0,
}


def evaluate(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help="Text to judge on: files, folders, globs, or a token folder. "
            "[default: the run's own validation text]",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            autocompletion=complete_run,
            help="A checkpoint, or a run's folder (its best.pt, else its newest); repeatable.",
            show_default=False,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Begin a window every so many tokens: a token then has at least the context minus this many "
            "tokens before it. [default: the context, windows side by side as in training's validation]",
            rich_help_panel=TEXT,
            show_default=False,
        ),
    ] = None,
    each_document: Annotated[
        bool,
        typer.Option(
            "--each-document",
            help="No context from the document before. [default: one stream, as in training]",
            rich_help_panel=TEXT,
        ),
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="No more than so many tokens from its beginning.", rich_help_panel=TEXT),
    ] = None,
    field: Field = None,
    errors: Errors = None,
    choices: Annotated[
        Path | None,
        typer.Option(
            help='Multiple choice: a JSONL file of {"question": …, "choices": […], "answer": …}.',
            rich_help_panel=QUESTIONS,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Write so many texts and judge them: variety, repetition, and what stands word for word in "
            "the training data.",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What each sample begins with.", rich_help_panel=SAMPLES)
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most tokens of a sample. [default: 256]",
            rich_help_panel=SAMPLES,
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="As in generate. [default: 0.8]", rich_help_panel=SAMPLES, show_default=False),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="As in generate; 0: all tokens. [default: 50]", rich_help_panel=SAMPLES, show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of the samples. [default: 0]", rich_help_panel=SAMPLES, show_default=False),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16 or auto. [default: fp32, the same figures on every machine]",
            rich_help_panel=MACHINE,
            show_default=False,
        ),
    ] = None,
    headless: Headless = False,
    json: Annotated[
        bool, typer.Option("--json", help="Everything as one JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Judge a model: loss, perplexity, bits per byte and accuracy, each with its standard error.

    Every token is scored once, in fp32. With `--choices` or `--samples` and no DATA, only those are done.
    Several checkpoints are compared on the same text; bits per byte decide where tokenizers differ.

    **Examples**

        cpulm evaluate --checkpoint runs/tiny-1

        cpulm evaluate --checkpoint runs/tiny-1 --checkpoint runs/small-1 notes/ --stride 64

        cpulm evaluate --checkpoint runs/tiny-1 --samples 20
    """
    import os

    from cpulm.errors import SettingsError
    from cpulm.settings_resolver import resolve

    if not checkpoint:
        raise SettingsError("no checkpoint given", "such as --checkpoint runs/tiny-1")
    given = {
        "--prompt": prompt,
        "--max-new-tokens": max_new_tokens,
        "--temperature": temperature,
        "--top-k": top_k,
        "--seed": seed,
    }
    with_text = bool(data) or not (choices or samples)
    text_options = {"--stride": stride, "--each-document": each_document or None, "--max-tokens": max_tokens}
    reading = {"--field": field, "--errors": errors}
    _refuse_without_effect(given, "--samples", has_it=samples is not None)
    _refuse_without_effect(text_options, "a text", has_it=with_text)
    _refuse_without_effect(reading, "DATA", has_it=bool(data))
    _refuse_int8(precision)
    flags = {
        "data.field": field,
        "data.errors": errors,
        "runtime.device": device,
        "runtime.threads": threads,
        "runtime.precision": precision or "fp32",
    }
    settings = resolve(environ=os.environ, flags=flags)

    from cpulm.evaluation.evaluate import EvaluationRequest
    from cpulm.evaluation.multiple_choice import read_questions

    request = EvaluationRequest(
        sources=tuple(data or ()),
        with_text=with_text,
        field=settings.data.field,
        errors=settings.data.errors,
        stride=stride,
        apart=each_document,
        max_tokens=max_tokens,
        questions=tuple(read_questions(choices)) if choices else (),
        samples=None if samples is None else _sample_request(samples, given),
    )
    _evaluate(checkpoint, request, settings.runtime, headless=headless, json=json)


def _refuse_without_effect(options: dict[str, Any], needed: str, *, has_it: bool) -> None:
    from cpulm.errors import SettingsError

    for name, value in options.items():
        if value is not None and not has_it:
            raise SettingsError(
                f"{name} has no effect without {needed}", f"give {needed} too, or leave it out"
            )


def _refuse_int8(precision: str | None) -> None:
    from cpulm.errors import SettingsError

    if precision == "int8":
        raise SettingsError(
            "--precision int8 is for the products of training; figures are computed in fp32 or bf16",
            "leave --precision out: fp32 gives the same figures on every machine",
        )


def _sample_request(count: int, given: dict[str, Any]) -> Any:
    from cpulm.evaluation.samples import SampleRequest
    from cpulm.generation.sampling import Sampling

    values = {name: _SAMPLING[name] if value is None else value for name, value in given.items()}
    return SampleRequest(
        count=count,
        prompt=values["--prompt"],
        max_new_tokens=values["--max-new-tokens"],
        sampling=Sampling(temperature=values["--temperature"], top_k=values["--top-k"] or None),
        seed=values["--seed"],
    )


def _evaluate(
    checkpoints: list[Path], request: EvaluationRequest, runtime: Any, *, headless: bool, json: bool
) -> None:
    from cpulm.evaluation.evaluate import evaluate_checkpoints
    from cpulm.ui.console import print_json, say, stdout
    from cpulm.ui.evaluation import comparison_note, evaluation_table
    from cpulm.ui.watch import choose_mode, watch

    # The result is one JSON object, so progress is for people in either case.
    with watch(choose_mode(json=False, headless=headless or json)) as show:
        found = evaluate_checkpoints(checkpoints, request, runtime, show=show)
    if json:
        print_json(_record(found))
        return
    console = stdout()
    console.print(evaluation_table(found, console.width))
    note = comparison_note(found)
    if note:
        say(note)


def _record(found: EvaluationComparison) -> dict[str, Any]:
    return {
        "same_text": found.same_text,
        "same_tokenizer": found.same_tokenizer,
        "checkpoints": [_checkpoint_record(score) for score in found.scores],
    }


def _checkpoint_record(score: CheckpointScore) -> dict[str, Any]:
    names = [name for name in score.__dataclass_fields__ if name not in ("text", "samples")]
    record: dict[str, Any] = {name: getattr(score, name) for name in names}
    record["text"] = None if score.text is None else score.text.record()
    record["samples"] = score.samples
    return record
