"""What the shell offers when Tab is pressed: values that begin with what was typed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args


def preset(incomplete: str) -> list[str]:
    """Names of presets."""
    from cpulm.preset_files import preset_names

    return _beginning(incomplete, preset_names())


def run(incomplete: str) -> list[str]:
    """Folders of runs."""
    return _beginning(incomplete, _folders("runs", "settings.yaml"))


def run_or_sweep(incomplete: str) -> list[str]:
    """Folders of runs and of sweeps."""
    return _beginning(incomplete, [*_folders("runs", "settings.yaml"), *_folders("sweeps", "sweep.yaml")])


def run_or_folder(incomplete: str) -> list[str]:
    """The folder of runs, and the runs in it."""
    return _beginning(incomplete, ["runs", *_folders("runs", "settings.yaml")])


def paths(incomplete: str) -> list[str]:
    """Files and folders."""
    folder, _, name = incomplete.rpartition("/")
    try:
        inside = sorted(Path(folder + "/" if folder or incomplete.startswith("/") else ".").iterdir())
    except OSError:
        return []
    shown = [path for path in inside if name.startswith(".") or not path.name.startswith(".")]
    prefix = incomplete[: len(incomplete) - len(name)]
    return _beginning(incomplete, [f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in shown])


def tokenizer(incomplete: str) -> list[str]:
    """Kinds of tokenizers, and files."""
    from cpulm.settings import TokenizerKind

    return [*_beginning(incomplete, get_args(TokenizerKind)), *paths(incomplete)]


def axis(incomplete: str) -> list[str]:
    """What the curves of several runs are drawn over."""
    return _beginning(incomplete, ("steps", "tokens", "time", "flops"))


def export_format(incomplete: str) -> list[str]:
    """Formats of an export."""
    from cpulm.export.formats import FORMATS

    return _beginning(incomplete, FORMATS)


def quantization(incomplete: str) -> list[str]:
    """How a GGUF file stores matrices."""
    from cpulm.export.formats import QUANTIZATIONS

    return _beginning(incomplete, QUANTIZATIONS)


def words(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A callback for words that are known."""

    def complete(incomplete: str) -> list[str]:
        return _beginning(incomplete, known)

    return complete


def choices(key: str) -> Callable[[str], list[str]]:
    """A callback for the words that the setting ``key`` takes."""

    def complete(incomplete: str) -> list[str]:
        return _beginning(incomplete, _words(key))

    return complete


def assignment(incomplete: str) -> list[str]:
    """``KEY=`` for every setting; behind the sign the words that it takes."""
    from cpulm.settings.resolve_settings import known_keys

    key, equals, _ = incomplete.partition("=")
    if equals:
        return _beginning(incomplete, [f"{key}={word}" for word in _words(key)])
    return _beginning(incomplete, [f"{one}=" for one in known_keys() if one != "preset"])


def text_assignment(incomplete: str) -> list[str]:
    """As :func:`assignment`, for the settings of text."""
    return [one for one in assignment(incomplete) if one.startswith("data.")]


def _words(key: str) -> list[str]:
    from cpulm.settings.resolve_settings import allowed_values

    return allowed_values(key)


def _folders(parent: str, file: str) -> list[str]:
    return sorted(path.parent.as_posix() for path in Path(parent).glob(f"*/{file}"))


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
