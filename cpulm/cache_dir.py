"""Where things are kept that can be made again at any time, and what ``~`` means."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """``CPULM_CACHE``, else the platform's folder for such things; it need not exist."""
    if named := os.environ.get("CPULM_CACHE"):
        return expand_home(named)
    try:
        return _platforms_folder()
    except RuntimeError:  # neither HOME nor an account, as in a container that runs under any number
        account = os.getuid() if sys.platform != "win32" else 0
        return Path(tempfile.gettempdir()) / f"cpulm-{account}"


def expand_home(path: str | Path) -> Path:
    """``path`` with its leading ``~`` replaced; as it is if that names no home, as a shell does."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _platforms_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "cpulm" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cpulm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpulm"
