"""Which paths are models of other programs. Loads no torch."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"


def is_pretrained(path: Path) -> bool:
    """Whether ``path`` is a folder of transformers or a GGUF file, by its name."""
    return path.suffix.lower() == ".gguf" or (path / CONFIG).is_file()
