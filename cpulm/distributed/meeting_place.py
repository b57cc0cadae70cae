"""Where the machines of a run meet, and how this one reaches it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from cpulm.distributed.network import is_own_address, own_address, use_interface
from cpulm.errors import SettingsError
from cpulm.settings.distributed_settings import DistributedSettings

DEFAULT_PORT = 29400
CONNECT_SECONDS = 45.0
"""How long the rendezvous on another machine is tried to be reached."""


@dataclass(frozen=True)
class MeetingPlace:
    """The place ``endpoint``, which may be on this machine; others reach this one at ``own_address``."""

    endpoint: str
    own_address: str
    is_here: bool


def meeting_place(settings: DistributedSettings, say: Callable[[str], None]) -> MeetingPlace:
    """Find the meeting place of a run, and wait until it answers if it is on another machine.

    Raises:
        SettingsError: if there is none, it cannot be reached, or its port belongs to another program.
    """
    if settings.node_range[1] == 1:
        use_interface("127.0.0.1", one_host=True)
        return MeetingPlace("localhost:0", "127.0.0.1", is_here=True)
    if not settings.rendezvous:
        raise SettingsError(
            "a run on several machines needs a place where they meet",
            "give --rdzv-endpoint HOST:PORT on each, with the name of one of them",
        )
    host, port = host_and_port(settings.rendezvous)
    here = _is_here(host)
    if here and not _is_free(port):
        raise SettingsError(
            f"port {port} on {socket.gethostname()} is used by another program, or by another run",
            f"choose another one on all machines, such as --rdzv-endpoint {host}:{port + 1}",
        )
    if not here:
        wait_for(f"{host}:{port}", CONNECT_SECONDS, say)
    use_interface(host, one_host=False)
    return MeetingPlace(f"{host}:{port}", own_address(host), is_here=here)


def host_and_port(endpoint: str) -> tuple[str, int]:
    """``alpha:29400`` -> ``("alpha", 29400)``; the port may be left out."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or endpoint.endswith("]"):
        host, port = endpoint, ""
    return host.strip("[]"), int(port or DEFAULT_PORT)


def _is_here(host: str) -> bool:
    """Whether ``host`` is this machine: torch's launcher does not know its own address on Debian."""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        return any(is_own_address(str(one[4][0])) for one in socket.getaddrinfo(host, None))
    except OSError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def wait_for(endpoint: str, seconds: float, say: Callable[[str], None], *, again: bool = False) -> None:
    """Wait until the rendezvous on another machine answers.

    Args:
        again: it has answered before, so its name is not wrong if nobody knows it now.

    Raises:
        SettingsError: if it does not within ``seconds``.
    """
    host, port = host_and_port(endpoint)
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline or (isinstance(error, socket.gaierror) and not again):
                raise SettingsError(
                    f"cannot reach the rendezvous {host}:{port} from {socket.gethostname()}: "
                    f"{error.strerror or error}",
                    f"start the command on {host} too, see that its firewall admits port {port}, or give its "
                    "address instead of its name",
                ) from error
        if not told:
            say(f"waiting for {host}:{port} to answer")
            told = True
        time.sleep(1.0)
