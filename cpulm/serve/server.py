"""Serves a model on this computer's own address until it is interrupted."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable

import uvicorn

from cpulm.errors import SettingsError
from cpulm.serve.app import build_app
from cpulm.serve.model_queue import ServedModel

HOST = "127.0.0.1"


def open_port(port: int) -> socket.socket:
    """Take ``port`` of the loopback address; 0 for a free one.

    Raises:
        SettingsError: if it is taken, or not this user's.
    """
    taken = socket.socket()
    if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows would let two servers share a port
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
        taken.listen(128)
    except OSError as error:
        taken.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise SettingsError(f"port {port} {why}", "take a free one: --port 0") from error
    return taken


def server_of(served: ServedModel, key: str) -> uvicorn.Server:
    """The server, which ``run(sockets=[…])`` starts; it writes only what went wrong."""
    config = uvicorn.Config(
        build_app(served, key),
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def serve(served: ServedModel, key: str, taken: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        ready: called before the first request is answered.
    """
    ready()
    with taken, contextlib.suppress(KeyboardInterrupt):
        server_of(served, key).run(sockets=[taken])
