"""Exit codes: the numbers that cpulm ends with, and how any process ended, in words."""

from __future__ import annotations

import signal

FINISHED, BUG, SETTINGS, DATA, DIVERGED, RESOURCES, STOPPED, LOST, ABORTED = 0, 1, 2, 3, 4, 5, 75, 76, 130

EXIT_CODES = {
    FINISHED: "finished",
    BUG: "crashed: a bug, see the log",
    SETTINGS: "a flag or a setting is wrong",
    DATA: "the data or a checkpoint cannot be used",
    DIVERGED: "training diverged",
    RESOURCES: "no room on the disk or in memory",
    STOPPED: "stopped, with everything saved",
    LOST: "another process of the run was lost",
    ABORTED: "aborted",
}
"""All exit codes of cpulm and their words; the table in docs/reliability.md is the same."""

_WHY = {
    "SIGKILL": "often by the system, when memory runs out",
    "SIGSEGV": "a crash inside a library",
    "SIGABRT": "a crash inside a library",
    "SIGBUS": "often a disk or a file that disappeared",
    "SIGILL": "an instruction that this processor lacks",
}


def exit_in_words(code: int | None) -> str:
    """``killed by SIGKILL (often by the system, when memory runs out)``, ``exit code 5: no room …``.

    Args:
        code: as Python has it, negative for a signal; None if the process ended together with its computer.
    """
    if code is None:
        return "ended together with the computer or the supervisor"
    number = -code if code < 0 else code - 128 if 128 < code < 160 and code != ABORTED else 0
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        why = f" ({_WHY[name]})" if name in _WHY else ""
        return f"killed by {name}{why}"
    if code > 0xFFFF:  # the status of a crash on Windows
        return f"crashed with status 0x{code:08X}"
    return f"{EXIT_CODES[code]} (exit code {code})" if code in EXIT_CODES else f"exit code {code}"
