"""Where things are kept that can be made again at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """``CPULM_CACHE``, else the platform's folder for such things; it need not exist."""
    if named := os.environ.get("CPULM_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "cpulm" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "cpulm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpulm"
