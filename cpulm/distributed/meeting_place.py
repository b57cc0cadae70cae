"""Where the machines of a run meet, and how this one reaches it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from cpulm.distributed.network import is_own_address, own_address, use_interface
from cpulm.errors import SettingsError
from cpulm.settings.distributed_settings import DistributedSettings
from cpulm.units import format_duration

DEFAULT_PORT = 29400
JOIN_SECONDS = 600
"""How long a machine waits for the others to join, and to reach them again."""
CONNECT_SECONDS = 35.0
"""How long a machine where the others meet may be silent."""
NOTICE_SECONDS = 60.0
"""How often a machine that waits for others says so."""
_TRY_SECONDS = 5.0


class Notices:
    """Says what is waited for: when that changes, and then every minute with the time since."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._text, self._since, self._next = "", 0.0, 0.0

    def tell(self, text: str) -> None:
        """Say ``text`` if it is new, or was last said long ago."""
        now = time.monotonic()
        if text != self._text:
            self._text, self._since = text, now
            self._say(text)
        elif now >= self._next:
            self._say(f"{text} (for {format_duration(now - self._since)} so far)")
        else:
            return
        self._next = now + NOTICE_SECONDS


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
        wait_for(f"{host}:{port}", JOIN_SECONDS, say)
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
        seconds: how long a machine is waited for that refuses connections: the command may start there later.
        again: it has answered before, so it is waited for as long if it is silent, or if nobody knows its
            name now.

    Raises:
        SettingsError: if it does not answer in time.
    """
    host, port = host_and_port(endpoint)
    notices, now = Notices(say), time.monotonic()
    deadline = now + seconds
    silent_deadline = deadline if again else now + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=_TRY_SECONDS).close()
            return
        except OSError as error:
            now = time.monotonic()
            refuses = isinstance(error, ConnectionRefusedError)
            if refuses and not again:
                silent_deadline = now + CONNECT_SECONDS
            unknown = isinstance(error, socket.gaierror) and not again
            if unknown or now > min(deadline, silent_deadline):
                raise SettingsError(
                    f"cannot reach the rendezvous {host}:{port} from {socket.gethostname()}: "
                    f"{error.strerror or error}",
                    f"start the command on {host} too, see that its firewall admits port {port}, or give its "
                    "address instead of its name",
                ) from error
        if refuses:
            notices.tell(
                f"nothing listens at {host}:{port}: waiting until the same command is started on {host}, and "
                f"its firewall admits port {port}"
            )
        else:
            notices.tell(f"waiting for {host}:{port} to answer")
        time.sleep(1.0)
