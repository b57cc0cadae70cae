"""Named options for settings: each is worded once here, and given to every command that takes it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flag import SettingFlag
from cpulm.errors import CpulmError, SettingsError

COMMON, TEXT, FILES, HOW_LONG, MODEL = "Common", "Text", "Reading files", "How long", "Model"
LEARNING, MACHINE, PROCESSES, OUTPUT = "Learning", "Machine", "Several processes", "Output"


def _until(text: str) -> str:
    from cpulm.cli.until import parse_until

    return parse_until(text).isoformat()


def _on_or_off(on: bool) -> str:
    return "on" if on else "off"


FLAGS = {
    flag.name: flag
    for flag in (
        SettingFlag(
            "train.max_time",
            ("--max-time",),
            "DURATION",
            "Training time in total, such as 8h or 90min.",
        ),
        SettingFlag("train.steps", ("--steps",), "N", "Optimizer updates in total."),
        SettingFlag("train.epochs", ("--epochs",), "X", "Passes over the training text."),
        SettingFlag("train.tokens", ("--tokens",), "N", "Trained tokens in total."),
        SettingFlag(
            "train.until",
            ("--until",),
            "TIME",
            "Time of day to end at: 07:00 or '2026-05-01 07:00'.",
            convert=_until,
        ),
        SettingFlag(
            "train.target_loss", ("--target-loss",), "X", "End at this validation loss (nats/token)."
        ),
        SettingFlag("train.patience", ("--patience",), "N", "End after N validations without a new best."),
        SettingFlag("eval.every", ("--eval-every",), "N", "Most updates between validations. [default: 250]"),
        SettingFlag("train.micro_batch_size", ("--batch-size",), "N", "Sequences in one micro-batch."),
        SettingFlag("train.grad_accum_steps", ("--grad-accum",), "N", "Micro-batches in one update."),
        SettingFlag(
            "train.lr",
            ("--lr",),
            "X",
            "Peak learning rate of AdamW: embeddings, head and norms, or everything with "
            "train.optimizer=adamw.",
        ),
        SettingFlag(
            "train.muon_lr",
            ("--muon-lr",),
            "X",
            "Peak learning rate of Muon: the blocks' matrices.",
        ),
        SettingFlag(
            "train.records",
            ("--records",),
            "",
            "Windows of whole documents that do not see each other: for rows and short texts.",
        ),
        SettingFlag(
            "train.generations",
            ("--generations",),
            "N",
            "Trainings, each taught by the best one. [default: 1]",
        ),
        SettingFlag(
            "train.init_from",
            ("--init-from",),
            "MODEL",
            "Begin with a trained model: a run, a checkpoint, a folder of transformers, a GGUF file.",
            complete=completion.paths,
        ),
        SettingFlag(
            "lora.rank",
            ("--lora-rank",),
            "N",
            "Train adapters of this rank (LoRA) on the model of --init-from.",
        ),
        SettingFlag(
            "train.teacher",
            ("--teacher",),
            "RUN|FILE",
            "A run or checkpoint that also teaches this model.",
            complete=completion.paths,
        ),
        SettingFlag("train.seed", ("--seed",), "N", "Seed of weights, data order and dropout."),
        SettingFlag("model.n_layer", ("--n-layer",), "N", "Transformer blocks."),
        SettingFlag("model.n_head", ("--n-head",), "N", "Attention heads."),
        SettingFlag("model.n_embd", ("--n-embd",), "N", "Width of the model."),
        SettingFlag(
            "model.block_size", ("--block-size", "--seq-len"), "N", "Context: tokens in one sequence."
        ),
        SettingFlag("model.dropout", ("--dropout",), "X", "Dropout while training. [default: 0]"),
        SettingFlag(
            "data.source",
            ("--data",),
            "TEXT",
            "A file, folder, glob, hf:NAME, token folder, or builtin:python; repeatable.",
            many=True,
            complete=completion.paths,
        ),
        SettingFlag(
            "data.val_source",
            ("--val-data",),
            "TEXT",
            "Text to validate on, not a held-out part; repeatable.",
            many=True,
            complete=completion.paths,
        ),
        SettingFlag(
            "data.val_fraction", ("--val-fraction",), "X", "Part held out for validation. [default: 0.05]"
        ),
        SettingFlag(
            "data.tokenizer",
            ("--tokenizer",),
            "KIND|FILE",
            "bpe, byte, char, word, a tokenizer.json, or a list of words. [default: bpe]",
            complete=completion.tokenizer,
        ),
        SettingFlag("data.vocab_size", ("--vocab-size",), "N", "Entries of the vocabulary of bpe or word."),
        SettingFlag(
            "data.format",
            ("--format",),
            "NAME",
            "Read all files as text, csv, jsonl, markdown, ... [default: by suffix]",
        ),
        SettingFlag(
            "data.document",
            ("--document",),
            "file|line|paragraph",
            "What one document is in plain text. [default: file]",
            complete=completion.choices("data.document"),
        ),
        SettingFlag(
            "data.separator",
            ("--separator",),
            "TEXT",
            "What is between two documents of plain text, such as '<|endoftext|>'.",
            convert=str,
        ),
        SettingFlag(
            "data.field",
            ("--field",),
            "NAME",
            "Column or field that holds the text of a row. [default: text]",
        ),
        SettingFlag(
            "data.template",
            ("--template",),
            "TEXT",
            "How columns make the text of a row, such as '{grade}: {holds|list}'.",
            convert=str,
        ),
        SettingFlag(
            "data.chat",
            ("--chat",),
            "",
            "Rows are conversations, in OpenAI's or ShareGPT's form: learn to answer.",
        ),
        SettingFlag(
            "data.loss_after",
            ("--loss-after",),
            "NAME",
            "Count in the loss only what follows this column of the template.",
        ),
        SettingFlag(
            "data.where",
            ("--where",),
            "CONDITION",
            "Take only rows that meet it, such as 'grade>=6'; repeatable.",
            many=True,
        ),
        SettingFlag("data.dedup", ("--dedup",), "", "Leave out documents that were there before."),
        SettingFlag(
            "data.errors",
            ("--errors",),
            "strict|replace",
            "At bytes that are not UTF-8: stop, or read U+FFFD. [default: strict]",
            complete=completion.choices("data.errors"),
        ),
        SettingFlag(
            "data.encoding", ("--encoding",), "NAME", "Encoding of files that are not UTF-8, such as cp1252."
        ),
        SettingFlag("data.skip_bad", ("--skip-bad",), "", "Leave out rows that cannot be used."),
        SettingFlag(
            "runtime.device",
            ("--device",),
            "NAME",
            "auto, cpu, cuda or mps. [default: auto]",
            complete=completion.choices("runtime.device"),
        ),
        SettingFlag("runtime.threads", ("--threads",), "N", "CPU threads. [default: the physical cores]"),
        SettingFlag(
            "runtime.precision",
            ("--precision",),
            "NAME",
            "auto, fp32, bf16 or int8. [default: auto]",
            complete=completion.choices("runtime.precision"),
        ),
        SettingFlag(
            "runtime.compile",
            ("--compile/--no-compile",),
            "",
            "Use torch.compile. [default: if it saves time]",
            convert=_on_or_off,
        ),
        SettingFlag("runtime.nice", ("--nice/--no-nice",), "", "Run at low priority."),
        SettingFlag(
            "runtime.allow_sleep",
            ("--allow-sleep/--no-allow-sleep",),
            "",
            "Let the machine go to sleep while it trains.",
        ),
        SettingFlag(
            "runtime.pause_on_battery",
            ("--pause-on-battery/--no-pause-on-battery",),
            "",
            "Wait while the machine runs on battery.",
        ),
        SettingFlag(
            "distributed.processes",
            ("--nproc", "--nproc-per-node"),
            "N",
            "Processes on this machine, which share every update. [default: 1]",
        ),
        SettingFlag(
            "distributed.nodes",
            ("--nnodes",),
            "N|MIN:MAX",
            "Machines; give each the same command.",
        ),
        SettingFlag(
            "distributed.rendezvous",
            ("--rdzv-endpoint",),
            "HOST:PORT",
            "Where the machines meet: one of them, and a free port there.",
        ),
        SettingFlag(
            "distributed.run_id",
            ("--rdzv-id",),
            "NAME",
            "What the machines of this run call it. [default: cpulm]",
        ),
        SettingFlag(
            "checkpoint.every",
            ("--checkpoint-every",),
            "DURATION",
            "Training time between checkpoints. [default: 10min]",
        ),
        SettingFlag("log.tensorboard", ("--tensorboard",), "", "Write TensorBoard files too."),
    )
}
"""All of them, by the names of their parameters."""


READING = (
    *("format", "document", "separator", "field", "template", "loss_after", "chat", "where"),
    *("errors", "encoding", "skip_bad"),
)
TEXTS = ("data", "val_data", "val_fraction", "tokenizer", "vocab_size", "dedup")
HORIZON = ("max_time", "steps", "epochs", "tokens", "until")
SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "dropout")
TOGETHER = ("nproc", "nnodes", "rdzv_endpoint", "rdzv_id")
BEHAVIOUR = ("nice", "allow_sleep", "pause_on_battery")
KEPT_BY_RESUME = ("checkpoint_every", *BEHAVIOUR, *TOGETHER)
"""Options that ``cpulm resume``, and ``train --resume``, take too."""

Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting: train.weight_decay=0.2; repeatable.",
        rich_help_panel=LEARNING,
        autocompletion=completion.assignment,
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="YAML file of settings, or a plan of cpulm benchmark.",
        rich_help_panel=LEARNING,
        autocompletion=completion.paths,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Settings to begin with. [default: tiny]",
        rich_help_panel=COMMON,
        autocompletion=completion.preset,
    ),
]
Headless = Annotated[
    bool, typer.Option("--headless", help="Plain lines instead of the dashboard.", rich_help_panel=OUTPUT)
]
JsonResult = Annotated[
    bool, typer.Option("--json", help="The result as JSON on stdout.", rich_help_panel=OUTPUT)
]
JsonEvents = Annotated[
    bool, typer.Option("--json", help="Events as JSON lines on stdout.", rich_help_panel=OUTPUT)
]


def setting_flags(
    panels: Mapping[str, tuple[str | SettingFlag, ...]],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command named options for settings.

    The command receives those that were given as ``flags``: the settings' keys, with a dot, and their values.
    A complaint about such a setting names the option that was typed.

    Args:
        panels: names out of :data:`FLAGS`, or other options, for each panel of the help.
    """
    chosen = {
        FLAGS[one] if isinstance(one, str) else one: panel for panel, ones in panels.items() for one in ones
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def parsed(**arguments: Any) -> None:
            typed = {flag: arguments.pop(flag.name) for flag in chosen}
            given = {flag: value for flag, value in typed.items() if flag.is_given(value)}
            try:
                command(**arguments, flags={flag.key: flag.value(value) for flag, value in given.items()})
            except CpulmError as error:
                _name_the_options(error, given)
                raise

        signature = inspect.signature(command, eval_str=True)
        own = [one for name, one in signature.parameters.items() if name != "flags"]
        added = [flag.parameter(panel) for flag, panel in chosen.items()]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + added
        parsed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        parsed.__annotations__ = {one.name: one.annotation for one in parameters}
        return parsed

    return decorate


def _name_the_options(error: CpulmError, given: Mapping[SettingFlag, Any]) -> None:
    """Have it say ``--lr -1: must be ...`` for ``train.lr = -1: must be ...`` if that was typed."""
    message = error.message
    for flag, value in given.items():
        option, rest = flag.options[0].partition("/")[0], message.removeprefix(f"{flag.key} = ")
        if rest != message and flag.metavar and not flag.many:
            message = value + rest.removeprefix(repr(value)) if rest.startswith(repr(value)) else rest
            message = f"{option} {message}"
        # A switch takes no value, --set keeps its key, and `key: what it is` tells the key.
        behind = r"(?!\.?\w|: )" if flag.metavar else r"(?!\.?\w|: |=)"
        key = rf"(?<![\w.=-])(?<!--set ){re.escape(flag.key)}{behind}"
        message, error.hint = re.sub(key, option, message), re.sub(key, option, error.hint)
    error.message, error.args = message, (message,)


def horizon(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The horizon among the flags, by the names of the settings in ``train``."""
    return {name: flags[f"train.{name}"] for name in HORIZON if f"train.{name}" in flags}


def with_text(flags: Mapping[str, Any], text: list[str] | None) -> dict[str, Any]:
    """The flags with the texts that were given as arguments before those of ``--data``.

    Raises:
        SettingsError: if an argument is the name of a preset, and there is no such file.
    """
    from pathlib import Path

    from cpulm.preset_files import preset_names

    for one in text or ():
        if one in preset_names() and not Path(one).exists():
            raise SettingsError(f"{one} is a preset, and text is expected here", f"write --preset {one}")
    sources = [*(text or ()), *flags.get("data.source", ())]
    return {**flags, "data.source": sources} if sources else dict(flags)
