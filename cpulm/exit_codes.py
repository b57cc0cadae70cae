"""How a process ended, in words."""

from __future__ import annotations

import signal

_CODES = {
    0: "finished",
    1: "crashed: a bug, see the log",
    2: "a setting is wrong",
    3: "the data or a checkpoint cannot be used",
    4: "training diverged",
    5: "no room on the disk or in memory",
    75: "stopped, with everything saved",
    130: "aborted",
}
_WHY = {
    "SIGKILL": "often by the system, when memory runs out",
    "SIGSEGV": "a crash inside a library",
    "SIGABRT": "a crash inside a library",
    "SIGBUS": "often a disk or a file that went away",
    "SIGILL": "an instruction that this processor lacks",
}


def exit_in_words(code: int | None) -> str:
    """``killed by SIGKILL (often by the system, when memory runs out)``, ``exit code 5: no room …``."""
    if code is None:
        return "gone, with the computer or the process that watched it"
    number = -code if code < 0 else code - 128 if 128 < code < 160 and code != 130 else 0
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        why = f" ({_WHY[name]})" if name in _WHY else ""
        return f"killed by {name}{why}"
    if code > 0xFFFF:  # the status of a crash on Windows
        return f"crashed with status 0x{code:08X}"
    return f"{_CODES[code]} (exit code {code})" if code in _CODES else f"exit code {code}"
