"""Stands for a process of ``cpulm`` that :mod:`forked` forks: has it made, hands on signals, ends as it does.

Called as ``forked_client.py SOCKET PYTHON cpulm/__main__.py ARGUMENTS``: PYTHON is what it was called as.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def main() -> None:
    request = {
        "folder": os.getcwd(),  # noqa: PTH109 (pathlib takes longer to import than all else here)
        "argv": sys.argv[4:],
        "environ": dict(os.environ),
        "executable": sys.argv[2],
        "leads": os.getsid(0) == os.getpid(),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        socket.send_fds(connection, [f"{json.dumps(request)}\n".encode()], [0, 1, 2])
        answers = connection.makefile()
        pid = int(answers.readline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
