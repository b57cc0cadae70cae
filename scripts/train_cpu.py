"""Trains a first model on the CPU and shows what it writes; train_cpu.sh and train_cpu.bat call this.

Arguments go to ``cpulm train``, and its exit code is this program's. With ``--overnight`` the run is
handed to a process that outlives the terminal; without, what happened is told on one page at the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TextIO

import environment

STOPPED = 75


def main(arguments: list[str]) -> int:
    """Prepare the environment, train, print samples from the best checkpoint."""
    environment.prepare()
    cpulm = environment.program(environment.ROOT / ".venv", "cpulm")
    before = checkpoints(arguments)
    code = _follow([str(cpulm), "train", *defaults(arguments), *arguments])
    if "--overnight" in arguments:
        if code == 0:
            print(f'here cpulm is "{cpulm}"', file=sys.stderr)
        return code  # the run goes on, or its error has been shown
    written = [path for path, when in checkpoints(arguments).items() if before.get(path) != when]
    if not written:
        return code
    newest = max(written, key=lambda path: path.stat().st_mtime_ns)
    if "--json" not in arguments:
        print(file=sys.stderr, flush=True)
        _follow([str(cpulm), "summary", "--", str(newest.parent)], stdout=sys.stderr)
    if code == STOPPED:
        print(f'\ncontinue with: "{cpulm}" resume "{newest.parent}"', file=sys.stderr)
    best = newest.with_name("best.pt")
    if code == 0 and "--json" not in arguments:
        shown = best if best.is_file() else newest
        print(f"\nWhat the model writes ({shown}):\n", file=sys.stderr, flush=True)
        options = ["--num-samples", "2", "--max-new-tokens", "200", "--prompt", ""]
        code = _follow([str(cpulm), "generate", "--checkpoint", str(shown), *options])
        print(f'\nmore of it: "{cpulm}" generate --checkpoint "{shown}"', file=sys.stderr)
    return code


def defaults(arguments: list[str]) -> list[str]:
    """What this program adds: the device."""
    given = [argument.partition("=")[0] for argument in arguments]
    return [] if "--device" in given else ["--device", "cpu"]


def checkpoints(arguments: list[str]) -> dict[Path, int]:
    """Checkpoints in the run that ``--out`` names, else in all of ``runs``, with their time of change."""
    folders = list(Path("runs").glob("*"))
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--out":
            folders = [Path(value if equals else "".join(arguments[at + 1 : at + 2]))]
    files = [folder / name for folder in folders for name in ("latest.pt", "best.pt")]
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


def _follow(command: list[str], stdout: TextIO | None = None) -> int:
    """Run a program that gets this one's signals; its exit code.

    Ctrl-C reaches the program from the terminal, as a member of the same group: it saves and ends by
    itself, and this one only has to outlive it. Other requests to end are handed on.
    """
    _handle(signal.SIGINT, _outlive)
    with subprocess.Popen(command, stdout=stdout) as process:

        def hand_on(number: int, _: FrameType | None) -> None:
            process.send_signal(number)

        _handle(signal.SIGTERM, hand_on)
        if os.name != "nt":
            _handle(signal.SIGHUP, hand_on)
        code = process.wait()
    return code if code >= 0 else 128 - code


def _handle(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
    """Handle a signal unless it was ignored before: with nohup or a shell's ``&`` that is on purpose."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


def _outlive(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing: a program started from here begins with the usual one again."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
