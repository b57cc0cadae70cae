"""The network interfaces of this machine, by their addresses."""

from __future__ import annotations

import psutil


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has ``address``; None if none has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return str(name)
    return None


def loopback_interface() -> str | None:
    """Return the name of the interface of 127.0.0.1."""
    return interface_of("127.0.0.1")
