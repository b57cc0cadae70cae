"""``cpulm evaluate``: how good a model is, in figures that can be trusted and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpulm.cli import completion
from cpulm.cli.precision_flag import precision
from cpulm.cli.setting_flags import (
    COMMON,
    FILES,
    MACHINE,
    READING,
    TEXT,
    Headless,
    JsonResult,
    setting_flags,
)

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


@setting_flags({FILES: READING, MACHINE: ("device", "threads", precision(("auto", "fp32", "bf16"), "fp32"))})
def evaluate(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...",
            autocompletion=completion.run,
            help="Runs (their best.pt, else the newest checkpoint), checkpoints, folders of transformers or "
            "GGUF files.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            autocompletion=completion.run,
            help="A run by name; then the arguments are TEXT.",
            hidden=True,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            autocompletion=completion.paths,
            help="Text to judge on: a file, folder, glob or token folder; repeatable. "
            "[default: the run's own validation text]",
            rich_help_panel=COMMON,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Begin a window every N tokens: each token then has at least the context minus N tokens "
            "before it. [default: the context length; windows do not overlap, as in validation]",
            rich_help_panel=TEXT,
        ),
    ] = None,
    each_document: Annotated[
        bool,
        typer.Option(
            "--each-document",
            help="Score each document without the one before it. [default: one stream, as in training]",
            rich_help_panel=TEXT,
        ),
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Use the first N tokens at most.", rich_help_panel=TEXT),
    ] = None,
    choices: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Multiple choice: a JSONL file of {"question": …, "choices": […], "answer": …}; '
            "- reads it from standard input.",
            rich_help_panel=QUESTIONS,
        ),
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Write N texts and judge them: variety, repetition, and what is copied word for word from "
            "the training text.",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What each sample begins with.", rich_help_panel=SAMPLES),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Maximum length of a sample. [default: 256]", rich_help_panel=SAMPLES
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="X", help="As in generate. [default: 0.8]", rich_help_panel=SAMPLES),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="As in generate; 0: all tokens. [default: 50]", rich_help_panel=SAMPLES
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Seed of the samples. [default: 0]", rich_help_panel=SAMPLES),
    ] = None,
    headless: Headless = False,
    json: JsonResult = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Judge a model: loss, perplexity, bits per byte and accuracy, with standard errors.

    Every token is scored once, in fp32 unless `--precision` says otherwise. With `--choices` or
    `--num-samples`, text is scored only if `--data` is given too. Several runs are compared on the same
    text, by bits per byte if their tokenizers differ.

    **Examples**

        cpulm evaluate runs/tiny-1

        cpulm evaluate runs/tiny-1 runs/small-1 --data notes/ --stride 64

        cpulm evaluate runs/tiny-1 --num-samples 20
    """
    import os

    from cpulm.settings.resolve_settings import resolve

    models, texts = _models_and_texts(runs or [], checkpoint or [], data or [])
    given = {
        "--prompt": prompt,
        "--max-new-tokens": max_new_tokens,
        "--temperature": temperature,
        "--top-k": top_k,
        "--seed": seed,
    }
    has_text = bool(texts) or not (choices or num_samples)
    text_options = {"--stride": stride, "--each-document": each_document or None, "--max-tokens": max_tokens}
    reading = {f"--{name.replace('_', '-')}": flags.get(f"data.{name}") for name in READING}
    _refuse_without_effect(given, "--num-samples", has_it=num_samples is not None)
    _refuse_without_effect(text_options, "a text", has_it=has_text)
    _refuse_without_effect(reading, "--data", has_it=bool(texts))
    has_reading = any(value is not None for value in reading.values())
    _refuse_int8(flags.get("runtime.precision"))
    from cpulm.data.spool import STDIN
    from cpulm.errors import SettingsError

    if str(choices) == "-" and set(texts) & set(STDIN):
        raise SettingsError("--choices and the text cannot both be standard input", "put one in a file")
    settings = resolve(environ=os.environ, flags={"runtime.precision": "fp32", **flags})

    from cpulm.data.reading import Reading
    from cpulm.evaluation.evaluate import EvaluationRequest
    from cpulm.evaluation.multiple_choice import read_questions

    request = EvaluationRequest(
        sources=tuple(texts),
        with_text=has_text,
        reading=Reading.of(settings.data) if has_reading else None,
        stride=stride,
        apart=each_document,
        max_tokens=max_tokens,
        questions=tuple(read_questions(choices)) if choices else (),
        samples=None if num_samples is None else _sample_request(num_samples, given),
    )
    _evaluate(models, request, settings.runtime, headless=headless, json=json)


def _models_and_texts(
    arguments: list[str], checkpoints: list[str], data: list[str]
) -> tuple[list[Path], list[str]]:
    """Runs or checkpoints, and texts. With ``--checkpoint`` the arguments are texts, as they once were.

    Raises:
        SettingsError: if there is no run, or an argument is a text.
    """
    from cpulm.command import typed
    from cpulm.errors import SettingsError
    from cpulm.pretrained.recognize import is_pretrained
    from cpulm.run_dir import RunDir

    if checkpoints:
        return [Path(one) for one in checkpoints], [*arguments, *data]
    if not arguments:
        raise SettingsError("RUN is missing", "such as `cpulm evaluate runs/tiny-1`")
    for one in map(Path, arguments):
        found = RunDir(one)
        is_model = one.suffix == ".pt" or is_pretrained(one) or found.settings.exists()
        if one.exists() and not is_model and not found.checkpoints():
            raise SettingsError(
                f"{one} is neither a run nor a checkpoint", f"give a text as --data {typed(one)}"
            )
    return [Path(one) for one in arguments], data


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
            "--precision int8 is for training; losses are computed in fp32 or bf16",
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
