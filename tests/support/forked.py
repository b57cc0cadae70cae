"""Runs ``cpulm`` in processes that begin with everything imported: forks of one process, in milliseconds.

A new process takes seconds to load torch. These are for tests of what only a process shows (signals, streams,
exit codes), but not of what it imports.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

CLOSED = ""
"""In place of a file: the process does not have the stream."""


class Forked:
    """``cpulm ARGUMENTS`` in ``folder``, in a process whose streams are files, devices or :data:`CLOSED`.

    One at a time: the next may begin when :meth:`wait` has returned.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        stdin: Path | str = os.devnull,
        stdout: Path | str = os.devnull,
        stderr: Path | str = os.devnull,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._server = _server()
        self._code: int | None = None
        request = {
            "folder": str(folder),
            "argv": arguments,
            "streams": [str(stdin), str(stdout), str(stderr)],
            "environ": {**os.environ, **(environ or {})},
        }
        assert self._server.stdin is not None
        self._server.stdin.write(f"{json.dumps(request)}\n")
        self.pid = self._answer()

    def wait(self) -> int:
        """The exit code; negative: the signal that ended it."""
        if self._code is None:
            self._code = self._answer()
        return self._code

    def _answer(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


def forked(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """``cpulm ARGUMENTS`` in ``folder`` in such a process, with nothing to read, to its end."""
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept, "out"), Path(kept, "err")
        code = Forked(folder, *arguments, stdout=out, stderr=err, environ=environ).wait()
        return subprocess.CompletedProcess(arguments, code, out.read_text("utf-8"), err.read_text("utf-8"))


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that is forked: one for each that runs tests, from the first use to its end."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked")
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True, bufsize=1)
    atexit.register(server.communicate)  # closes its stdin, upon which it ends
    return server


def _serve() -> dict[str, Any] | None:
    """Fork once for each line of stdin; in the fork the request, in the server None at the end."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            request: dict[str, Any] = json.loads(line)
            return request
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()
    return None


def _become(request: dict[str, Any]) -> None:
    """Make this process what a new interpreter with these streams and arguments would be."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv = ["cpulm", *request["argv"]]
    opened = (os.O_RDONLY, "r"), (os.O_WRONLY | os.O_CREAT, "w"), (os.O_WRONLY | os.O_CREAT, "w")
    os.closerange(0, 3)
    for number, (path, (flags, mode), name) in enumerate(
        zip(request["streams"], opened, ("stdin", "stdout", "stderr"), strict=True)
    ):
        stream = None
        if path != CLOSED:
            os.dup2(other := os.open(path, flags), number)
            if other != number:
                os.close(other)
            lines = 1 if name == "stderr" else -1  # as Python buffers them
            stream = open(number, mode, lines, encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _import_everything() -> None:
    import cpulm

    for module in pkgutil.walk_packages(cpulm.__path__, "cpulm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


if __name__ == "__main__":
    del sys.path[0]  # as __main__.py does: no module is found beside this file
    _import_everything()
    gc.freeze()  # else every fork would write to all of this memory as it ends
    if (asked := _serve()) is not None:
        _become(asked)
        from cpulm.cli.main import main

        main()
