"""``cpulm serve``: a model behind OpenAI's interface, and a page to write with it, on this computer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpulm.cli import completion
from cpulm.cli.precision_flag import WRITING
from cpulm.cli.setting_flags import COMMON, MACHINE, setting_flags

if TYPE_CHECKING:
    from cpulm.serve.written_text import ServedModel


@setting_flags({MACHINE: WRITING})
def serve(
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
    port: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="The port; 0: a free one. [default: 8000]",
            rich_help_panel=COMMON,
        ),
    ] = 8000,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What programs must give as api_key. [default: a new one]",
            rich_help_panel=COMMON,
        ),
    ] = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Serve a model to programs that speak OpenAI's interface, and a page to write with it.

    Only programs of this computer reach it, and only with the key, which is in the address of the page.
    Ctrl-C ends it.

    **Examples**

        cpulm serve runs/tiny-1

        cpulm serve runs/tiny-1 --port 0 --key secret
    """
    import secrets

    from cpulm.errors import SettingsError
    from cpulm.run_dir import RunDir
    from cpulm.ui.console import say, stderr, write_text

    if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
        raise SettingsError("--key is not one word of ASCII characters", "leave it out for a new one")
    require_extra("`cpulm serve`")
    from cpulm.serve.app import build_app
    from cpulm.serve.server import HOST, open_port, serve

    taken = open_port(port)
    with stderr().status(f"loading {run}"):
        served = _load(run, flags)
    secret = key or secrets.token_urlsafe(24)
    address = f"http://{HOST}:{taken.getsockname()[1]}"
    trained = RunDir(run if run.is_dir() else run.parent)
    shown = trained if trained.metrics.is_file() else None
    say(f"base_url: {address}/v1\napi_key: {secret}")
    if shown is not None:
        say(f"the run's report, live: {page_address(f'{address}/watch', secret)}")
    say("Ctrl-C ends it; the page to write with:")
    write_text(f"{page_address(f'{address}/', secret)}\n")
    serve(build_app(served, secret, shown), taken)


def require_extra(what: str) -> None:
    """Raises SettingsError if a library of the servers is missing."""
    from cpulm.data.extras import library

    for package in ("starlette", "uvicorn"):
        library(package, what=what, package=package, extra="serve")


def page_address(address: str, key: str) -> str:
    """The address of a server's page; browsers do not send what stands behind the #."""
    from urllib.parse import quote

    return f"{address}#key={quote(key, safe='')}"


def _load(run: Path, flags: dict[str, Any]) -> ServedModel:
    from cpulm.api.language_model import load_trained
    from cpulm.serve.written_text import ServedModel
    from cpulm.system.machine import read_machine
    from cpulm.ui.console import show_warning

    model, tokenizer, checkpoint, _ = load_trained(run, flags, show_warning)
    records, place = checkpoint.settings.train.records, run.resolve()
    name = place.parent.name if place.suffix == ".pt" else place.name
    cache_bytes = read_machine().memory_available_bytes // 2
    return ServedModel(name, model, tokenizer, checkpoint.starts_documents, records, cache_bytes)
