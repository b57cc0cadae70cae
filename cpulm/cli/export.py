"""``cpulm export``: a trained model in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flags import COMMON, OUTPUT, JsonResult

if TYPE_CHECKING:
    from cpulm.export.export_model import Exported


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            autocompletion=completion.run,
            help="A run's folder (its best.pt, else the newest checkpoint), a checkpoint, a folder of "
            "transformers or a GGUF file.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="hf: a folder for transformers, MLX and vLLM; gguf: a file for llama.cpp, Ollama, LM "
            "Studio; page: one HTML file that runs the model offline; safetensors: the bare weights.",
            rich_help_panel=COMMON,
            autocompletion=completion.export_format,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The folder or file to write. [default: named after the run, here]",
            rich_help_panel=COMMON,
            autocompletion=completion.paths,
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="How gguf stores matrices: f32, f16, q8_0 (a quarter of f32), q4_0 or q4_k (a "
            "seventh). [default: f16]",
            rich_help_panel=COMMON,
            autocompletion=completion.quantization,
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With hf: upload the folder to the Hugging Face Hub, as a private repository.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export.", rich_help_panel=OUTPUT)
    ] = False,
    json: JsonResult = False,
) -> None:
    """Export a model for other programs.

    The path goes to stdout; what to type next goes to stderr. hf and gguf take the blocks of Qwen3, Llama
    and GPT-2, which are all presets but nanochat-d4.

    **Examples**

        cpulm export runs/tiny-1 --to hf

        cpulm export runs/tiny-1 --to gguf --quantize q8_0

        cpulm export runs/tiny-1 --to page
    """
    from cpulm.errors import SettingsError
    from cpulm.export.formats import FORMATS, QUANTIZATIONS
    from cpulm.ui.console import print_json, say, show_warning, stderr, write_text

    format_ = next((one for one in FORMATS if one == to), None)
    if format_ is None:
        raise SettingsError(f"--to {to} is not a format", f"give one of {', '.join(FORMATS)}")
    quantization = next((one for one in QUANTIZATIONS if one == (quantize or "f16")), None)
    if quantization is None:
        raise SettingsError(f"--quantize {quantize} is not a type", f"give one of {', '.join(QUANTIZATIONS)}")
    for name, value, only in (("--quantize", quantize, "gguf"), ("--push", push, "hf")):
        if value is not None and to != only:
            raise SettingsError(f"{name} has no effect with --to {to}", f"leave it out, or use --to {only}")
    with stderr().status(f"exporting {run}") as status:
        from cpulm.export import push as hub
        from cpulm.export.export_model import ExportRequest, export_model

        if push is not None:
            hub.require_hub(push)
        exported = export_model(ExportRequest(run, format_, out, quantization, force), show_warning)
        uploaded = None
        if push is not None:
            status.update(f"uploading to {push}")
            uploaded = hub.push(exported.path, push)
    for limit in exported.limits:
        show_warning(limit)
    if json:
        print_json(_facts(exported, uploaded))
        return
    if uploaded is not None:
        say(f"uploaded: {uploaded}")
    say(f"next:\n{_next_commands(exported, to)}")
    write_text(f"{exported.path}\n")


def _facts(exported: Exported, uploaded: str | None) -> dict[str, object]:
    return {
        "path": exported.path,
        "files": [{"path": file, "bytes": file.stat().st_size} for file in exported.files],
        "limits": exported.limits,
        "uploaded": uploaded,
    }


def _next_commands(exported: Exported, to: str) -> str:
    """What to type after an export, one command a line."""
    from cpulm.command import typed

    place, name = typed(exported.path), typed(exported.trained.name)
    talks = exported.trained.talks
    if to == "gguf" and talks:
        return (
            f"  ollama create {name} -f {typed(exported.files[-1])} && ollama run {name}\n"
            f"  llama-server -m {place}"
        )
    if to == "gguf":
        return (
            f"  ollama create {name} -f {typed(exported.files[-1])} && ollama run {name} Once\n"
            f"  llama-completion -m {place} -no-cnv -p Once -n 100"
        )
    if to == "page":
        return f"  open {place} in a browser, or give it to a friend: it needs nothing else"
    path = repr(str(exported.path))
    said = "[{'role': 'user', 'content': 'Hello'}]" if talks else "'Once'"
    programs = {
        "hf": "from transformers import pipeline; "
        f"print(pipeline('text-generation', {path})({said})[0]['generated_text'])",
        "safetensors": f"from safetensors.numpy import load_file; print(load_file({path}).keys())",
    }
    program = programs[to]
    # A shell changes nothing between these quotation marks, except at these characters.
    quoted = typed(program) if set(program) & set('"$`!\\') else f'"{program}"'
    return f"  python -c {quoted}"
