"""Reads a model of another program: a folder of transformers or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from cpulm.errors import DataError, ResourceError
from cpulm.model.counts import count
from cpulm.pretrained.gguf_model import read_gguf
from cpulm.pretrained.hf_folder import read_hf_folder
from cpulm.pretrained.pretrained_model import PretrainedModel
from cpulm.system.machine import read_machine
from cpulm.units import format_bytes


def read_pretrained(path: Path) -> PretrainedModel:
    """Read the model at ``path``, for which ``is_pretrained`` is true.

    Raises:
        DataError: if it cannot be used; the message names the path.
        SettingsError: if a package is missing.
        ResourceError: if it is larger than the memory that is available.
    """
    try:
        found = read_hf_folder(path) if path.is_dir() else read_gguf(path)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from error
    available = read_machine().memory_available_bytes
    require_memory(path, count(found.settings, found.tokenizer.vocab_size).total, available)
    return found


def require_memory(path: Path, params: int, available_bytes: int) -> None:
    """Raise ResourceError if ``params`` weights in float32 need more than ``available_bytes``."""
    needed = 4 * params
    if needed > available_bytes:
        raise ResourceError(
            f"the weights of {path} need {format_bytes(needed)} of memory in fp32, and "
            f"{format_bytes(available_bytes)} are available",
            "close other programs, or take a smaller model",
        )
