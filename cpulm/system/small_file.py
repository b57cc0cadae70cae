"""Reads small files of the system, such as those in /proc and /sys."""

from __future__ import annotations

from pathlib import Path


def read_small_file(path: Path) -> str:
    """Return the file's text; empty if it cannot be read, which some drivers refuse at times."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
