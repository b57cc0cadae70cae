"""Finds functions of the libraries that torch is linked with: OpenMP's, and BLAS's outside Windows."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_WINDOWS_LIBRARIES = ("libiomp5md.dll", "libomp140.x86_64.dll")


def linked_function(name: str) -> int | None:
    """Return the address of a function that torch calls.

    It is searched as the system's loader searches what torch's libraries call: in the libraries that torch
    depends on, and on Linux before them in those that the whole process shares, as by ``LD_PRELOAD``.

    Returns:
        None if torch is not loaded, or its libraries do not have the function.
    """
    for library in _libraries():
        try:
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        except AttributeError:
            continue
    return None


def _libraries() -> list[ctypes.CDLL]:
    extension = getattr(sys.modules.get("torch._C"), "__file__", None)
    if extension is None:
        return []
    if sys.platform == "win32":
        return [ctypes.CDLL(path) for path in _WINDOWS_LIBRARIES if _is_loaded(path)]
    if sys.platform == "darwin":  # looks a function up in the library that its caller was linked with
        own = Path(extension).parent / "lib" / "libomp.dylib"
        return [ctypes.CDLL(str(own if own.exists() else extension))]
    return [ctypes.CDLL(None), ctypes.CDLL(extension)]


def _is_loaded(path: str) -> bool:
    """Whether this process has loaded a library of this name: loading another OpenMP would not help."""
    windows = getattr(ctypes, "windll")  # noqa: B009 - only on Windows
    return bool(windows.kernel32.GetModuleHandleW(path))
