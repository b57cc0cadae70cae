"""Serves a model on this computer's own address until it is interrupted."""

from __future__ import annotations

import contextlib
import errno
import socket

import uvicorn
from starlette.applications import Starlette

from cpulm.errors import SettingsError

HOST = "127.0.0.1"


def open_port(port: int, host: str = HOST) -> socket.socket:
    """Take ``port`` of ``host``, an IPv4 address of this computer; 0 for a free one.

    Raises:
        SettingsError: if it is taken, or not this user's.
    """
    taken = socket.socket()
    if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows would let two servers share a port
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(128)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"port {port} is in use", "take a free one: --port 0") from error
        problem = f"port {port} of {host} cannot be used: {error.strerror}"
        raise SettingsError(problem, "give an address of this computer, and a port above 1023") from error
    return taken


def server_of(app: Starlette) -> uvicorn.Server:
    """The server, which ``run(sockets=[…])`` starts; it writes only what went wrong."""
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    return uvicorn.Server(config)


def serve(app: Starlette, taken: socket.socket) -> None:
    """Serve until Ctrl-C."""
    with taken, contextlib.suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[taken])
