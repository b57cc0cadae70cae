"""Runs ``cpulm`` in processes that begin with everything imported: forks of one process, in milliseconds.

A new process takes seconds to load torch. These are for tests of what only a process shows (signals, streams,
exit codes), but not of what it imports.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

CLOSED = ""
"""In place of a file: the process does not have the stream."""


class Forked:
    """``cpulm ARGUMENTS`` in ``folder``, in a process whose streams are files, devices or :data:`CLOSED`.

    What it starts is started with the test's own ``sys.executable``, which may be that of :func:`forks`; or,
    with a ``server`` of :func:`serve`, is a fork of that.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        stdin: Path | str = os.devnull,
        stdout: Path | str = os.devnull,
        stderr: Path | str = os.devnull,
        environ: Mapping[str, str] | None = None,
        server: Path | None = None,
    ) -> None:
        self._code: int | None = None
        request = {
            "folder": str(folder),
            "argv": arguments,
            "streams": [str(stdin), str(stdout), str(stderr)],
            "environ": {**os.environ, **(environ or {})},
            "executable": sys.executable if server is None else str(_stand_in(server)),
        }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(server or _server()))
            connection.sendall(f"{json.dumps(request)}\n".encode())
            self._answers = connection.makefile()
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """The exit code as :meth:`wait` gives it; None while it runs."""
        ended = self._code is not None or select.select([self._answers], [], [], 0)[0]
        return self.wait() if ended else None

    def wait(self) -> int:
        """The exit code; negative: the signal that ended it."""
        if self._code is None:
            self._code = int(self._answers.readline())
            self._answers.close()
        return self._code


def forked(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """``cpulm ARGUMENTS`` in ``folder`` in such a process, with nothing to read, to its end."""
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept, "out"), Path(kept, "err")
        code = Forked(folder, *arguments, stdout=out, stderr=err, environ=environ).wait()
        return subprocess.CompletedProcess(arguments, code, out.read_text("utf-8"), err.read_text("utf-8"))


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cpulm starts in this test is a fork, too, that a small process stands for."""
    if hasattr(os, "fork"):
        monkeypatch.setattr(sys, "executable", str(_stand_in(_server())))


def _stand_in(server: Path) -> Path:
    """What cpulm takes for Python, to start itself, and is a fork of ``server``."""
    client = Path(__file__).with_name("forked_client.py")
    python = server.with_name("python")
    if not python.exists():
        command = shlex.join([sys.executable, "-I", "-S", str(client), str(server)])
        python.write_text(f'#!/bin/sh\nexec {command} "$0" "$@"\n')
        python.chmod(0o700)
    return python


@functools.cache
def _server() -> Path:
    """The socket of the process that is forked: one for each that runs tests, until that ends."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked")
    kept = tempfile.TemporaryDirectory(prefix="cpulm-")
    server = serve(Path(kept.name), subprocess.Popen)

    def end() -> None:
        server.communicate()  # closes its stdin, upon which it ends
        kept.cleanup()

    atexit.register(end)
    return Path(kept.name, "socket")


def serve(folder: Path, start: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Start a process that is forked for whoever connects to ``folder / "socket"``, and wait until it is."""
    pipe = subprocess.PIPE
    server = start([sys.executable, __file__, str(folder / "socket")], stdin=pipe, stdout=pipe, text=True)
    assert server.stdout is not None
    server.stdout.readline()  # it listens
    return server


def _serve(listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each connection; in the fork the request, in the server None at the end."""
    while True:
        ready, _, _ = select.select([sys.stdin, listener], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _request(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _request(connection: socket.socket) -> dict[str, Any]:
    """Fork for what the connection requests; in the fork the request. Never returns in this process.

    It tells the fork's pid and then its exit code, and kills it if nobody is there any more to be told.
    """
    text, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 16)
    request: dict[str, Any] = json.loads(text)
    pid = os.fork()
    if pid == 0:
        connection.close()
        return {"streams": streams, **request}
    connection.sendall(b"%d\n" % pid)
    for number in streams:
        os.close(number)
    ended = 0, 0
    while not ended[0]:
        if select.select([connection], [], [], 0.02)[0]:
            os.kill(pid, signal.SIGKILL)
            os._exit(1)
        ended = os.waitpid(pid, os.WNOHANG)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Make this process what a new interpreter with these streams and arguments would be."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv = ["cpulm", *request["argv"]]
    sys.executable = request.get("executable", sys.executable)
    if request.get("leads"):
        os.setsid()
    opened = (os.O_RDONLY, "r"), (os.O_WRONLY | os.O_CREAT, "w"), (os.O_WRONLY | os.O_CREAT, "w")
    os.closerange(0, 3)
    for number, (path, (flags, mode), name) in enumerate(
        zip(request["streams"], opened, ("stdin", "stdout", "stderr"), strict=True)
    ):
        stream = None
        if path != CLOSED:
            other = path if isinstance(path, int) else os.open(path, flags)
            if other != number:
                os.dup2(other, number)
                os.close(other)
            os.set_inheritable(number, True)  # what it starts has them, too
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
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen()
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        asked = _serve(listening)
    if asked is not None:
        _become(asked)
        from cpulm.cli.main import main

        main()
