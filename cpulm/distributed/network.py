"""Finds the network interface through which the other hosts of a run are reached.

Left alone, gloo takes the address that the host's own name stands for. On Debian and Ubuntu that is
127.0.1.1, an address that no other host can reach.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

from cpulm.errors import SettingsError
from cpulm.system.interfaces import interface_of, loopback_interface

VARIABLE = "GLOO_SOCKET_IFNAME"
_ELSEWHERE = "192.0.2.1"
"""An address that exists nowhere (RFC 5737): the system tells through which of its own it would be sought."""


_T = TypeVar("_T")


def within(seconds: float, connect: Callable[[], _T]) -> _T:
    """Return what ``connect`` does; torch and gloo wait without end for a program that answers nothing.

    Raises:
        TimeoutError: if it takes more than so many seconds.
    """
    answer: futures.Future[_T] = futures.Future()

    def ask() -> None:
        try:
            answer.set_result(connect())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="cpulm-connect", daemon=True).start()
    if not futures.wait([answer], seconds).done:
        raise TimeoutError(f"no connection within {seconds:.0f} s")
    return answer.result()


def answer_of(endpoint: str, connect: Callable[[], _T], seconds: float) -> _T:
    """Return what ``connect`` does.

    Raises:
        SettingsError: if ``connect``, to the rendezvous ``endpoint``, takes more than so many seconds.
    """
    try:
        return within(seconds, connect)
    except TimeoutError:
        raise SettingsError(
            f"what {socket.gethostname()} reaches at {endpoint} does not answer as the rendezvous of a run",
            "another program may use that port: choose another one on all machines",
        ) from None


def use_interface(address: str, *, one_host: bool) -> None:
    """Make gloo use the interface that reaches ``address``, unless the user has chosen one.

    Args:
        one_host: all processes are on this machine.
    """
    if os.environ.get(VARIABLE):
        return
    name = loopback_interface() if one_host else interface_of(own_address(address))
    if name is not None:
        os.environ[VARIABLE] = name


def own_address(other: str) -> str:
    """Return the address of this machine that other hosts can reach: the one towards ``other``.

    If ``other`` is this machine itself, the one towards the rest of the world.
    """
    towards = _source_address(other)
    if towards is not None and not towards.startswith("127.") and towards != "::1":
        return towards
    return _source_address(_ELSEWHERE) or towards or "127.0.0.1"


def is_own_address(address: str) -> bool:
    """Whether this machine has ``address``."""
    return address.startswith("127.") or interface_of(address) is not None


def _source_address(other: str) -> str | None:
    """The address from which this machine would send to ``other``; None if there is no way. Sends nothing."""
    try:
        found = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return None
