"""Several hosts on this machine: network namespaces, each with a name, an address and one core.

The rate of the links is the kernel's (``tc tbf`` on veth pairs at a bridge). Latency and loss are those of a
process that carries the packets between tun devices, because not every kernel has netem. Both need root.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NETWORK = "10.87.0"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MTU = 1500
_BUFFER_BYTES = 1 << 20
"""What a link keeps of packets that wait for their turn, as a home router does; more are dropped."""


@dataclass(frozen=True)
class Link:
    """What connects each host to the others: both directions alike.

    ``latency_ms`` is of one way; ``loss`` is a part of all packets.
    """

    mbit: float
    latency_ms: float = 0.0
    loss: float = 0.0


LINKS = {
    "1gbit": Link(1000),
    "100mbit": Link(100),
    "50ms": Link(100, latency_ms=25),
    "50ms-1%": Link(100, latency_ms=25, loss=0.01),
}
"""Links by name; with 50 ms, an answer takes 50 ms."""


@dataclass
class Host:
    """A network namespace with one core; ``device`` is its network interface.

    ``stays`` has process ids of what is not on trial, and lives on when the host is killed.
    """

    name: str
    address: str
    device: str
    core: int
    started: list[subprocess.Popen[Any]] = field(default_factory=list)
    stays: set[int] = field(default_factory=set)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command that runs ``arguments`` on this host."""
        renamed = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        pinned = ["taskset", "--cpu-list", str(self.core)]
        return ["ip", "netns", "exec", self.name, *renamed, *pinned, *arguments]

    def start(self, arguments: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on this host, in a session of its own."""
        process = subprocess.Popen(self.command(arguments), start_new_session=True, **options)
        self.started.append(process)
        return process

    def cut_off(self) -> None:
        """Take the cable out."""
        _ip("-n", self.name, "link", "set", self.device, "down")

    def connect(self) -> None:
        """Put the cable back."""
        _ip("-n", self.name, "link", "set", self.device, "up")

    def sent_bytes(self) -> int:
        """Bytes that left this host so far, with all headers."""
        out = _ip("-n", self.name, "-s", "-j", "link", "show", "dev", self.device)
        return int(json.loads(out)[0]["stats64"]["tx"]["bytes"])

    def kill(self) -> None:
        """End all that was started on this host, as a power failure does."""
        for pid in map(int, _ip("netns", "pids", self.name).split()):
            if pid not in self.stays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        ended = [process for process in self.started if process.pid not in self.stays]
        for process in ended:
            process.wait(30)
            self.started.remove(process)

    def end(self) -> None:
        """End also what stays."""
        self.stays.clear()
        self.kill()


def why_not() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    if sys.platform != "linux":
        return "network namespaces are of Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc", "unshare", "taskset", "hostname"):
        if shutil.which(program) is None:
            return f"there is no {program} (iproute2, util-linux)"
    name = f"cpulm-{uuid.uuid4().hex[:6]}"
    added = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if added.returncode:
        return f"no network namespace could be made: {added.stderr.strip()}"
    _ip("netns", "del", name)
    return None


@contextmanager
def network(count: int, link: Link, *, names: bool = True) -> Iterator[list[Host]]:
    """``count`` hosts, each with ``link`` to all others; on leaving, all that runs on them is killed.

    Args:
        names: whether they know each other's names, and not only addresses.
    """
    run = uuid.uuid4().hex[:4]
    cores = sorted(os.sched_getaffinity(0))
    hosts = [
        Host(f"host{n}-{run}", f"{NETWORK}.{n}", f"cp{run}{n}", cores[n % len(cores)])
        for n in range(1, count + 1)
    ]
    with ExitStack() as stack:
        for host in hosts:
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "del", host.name)
            stack.callback(host.end)
            stack.enter_context(_names(host, hosts if names else []))
            _ip("-n", host.name, "link", "set", "lo", "up")
        if link.latency_ms or link.loss:
            stack.enter_context(_carried(hosts, link))
        else:
            stack.enter_context(_bridged(hosts, link, f"cpbr{run}"))
        yield hosts


@contextmanager
def _names(host: Host, hosts: list[Host]) -> Iterator[None]:
    """Give a host the names of ``hosts``, and for its own that which Debian writes: 127.0.1.1."""
    folder = Path("/etc/netns") / host.name
    folder.mkdir(parents=True)
    others = "".join(f"{one.address} {one.name}\n" for one in hosts if one is not host)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n{others}")
    try:
        yield
    finally:
        shutil.rmtree(folder)


@contextmanager
def _bridged(hosts: list[Host], link: Link, bridge: str) -> Iterator[None]:
    _ip("link", "add", bridge, "type", "bridge")
    try:
        _ip("link", "set", bridge, "up")
        for host in hosts:
            outside = f"{host.device}x"
            _ip("link", "add", host.device, "netns", host.name, "type", "veth", "peer", "name", outside)
            _ip("link", "set", outside, "master", bridge, "up")
            _up(host)
            rate = ["rate", f"{link.mbit:g}mbit", "burst", "128kb", "latency", "20ms"]
            _run("tc", "qdisc", "add", "dev", outside, "root", "tbf", *rate)
            _run("tc", "-n", host.name, "qdisc", "add", "dev", host.device, "root", "tbf", *rate)
        yield
    finally:
        _ip("link", "del", bridge)


def _up(host: Host) -> None:
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.device)
    _ip("-n", host.name, "link", "set", host.device, "up")


@contextmanager
def _carried(hosts: list[Host], link: Link) -> Iterator[None]:
    """Connect the hosts by tun devices, between which a thread carries packets late and not all of them."""
    over = threading.Event()
    with ExitStack() as stack:
        files = []
        for host in hosts:
            file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, file)
            fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH", host.device.encode(), _IFF_TUN | _IFF_NO_PI))
            _ip("link", "set", host.device, "netns", host.name)
            _ip("-n", host.name, "link", "set", host.device, "mtu", str(_MTU))
            _up(host)
            files.append(file)
        carrier = threading.Thread(target=_carry, args=(files, link, over), daemon=True)
        carrier.start()
        stack.callback(carrier.join, 10)
        stack.callback(over.set)
        yield


def _carry(files: list[int], link: Link, over: threading.Event) -> None:
    """Read packets from every host, and write each to the host of its address when its time has come."""
    chance, bytes_per_second = random.Random(1), link.mbit * 1e6 / 8
    free = dict.fromkeys(files, 0.0)  # when the cable of each host has sent what waits for it
    late: list[tuple[float, int, int, bytes]] = []
    number = 0
    poller = select.epoll()
    for file in files:
        poller.register(file, select.EPOLLIN)
    while not over.is_set():
        wait = max(0.0, min(0.1, late[0][0] - time.monotonic())) if late else 0.1
        arrived = [(file, packet) for file, _ in poller.poll(wait) for packet in _packets(file)]
        now = time.monotonic()
        for file, packet in arrived:
            receiver = packet[19] - 1 if packet[0] >> 4 == 4 else -1  # the last byte of the IPv4 address
            queued = max(0.0, free[file] - now) * bytes_per_second
            if not 0 <= receiver < len(files) or queued > _BUFFER_BYTES or chance.random() < link.loss:
                continue
            free[file] = max(now, free[file]) + len(packet) / bytes_per_second
            number += 1
            due = free[file] + link.latency_ms / 1000
            heapq.heappush(late, (due, number, files[receiver], packet))
        while late and late[0][0] <= time.monotonic():
            _, _, file, packet = heapq.heappop(late)
            with contextlib.suppress(OSError):  # its cable is out
                os.write(file, packet)


def _packets(file: int) -> Iterator[bytes]:
    for _ in range(64):
        try:
            yield os.read(file, _MTU + 100)
        except OSError:  # nothing more, or the cable is out
            return


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def link_named(name: str) -> Link:
    """``1gbit``, ``100mbit``, ``50ms``, ``50ms-1%`` or any rate such as ``40mbit``."""
    if name in LINKS:
        return LINKS[name]
    match = re.fullmatch(r"(\d+)(m|g)bit", name)
    if match is None:
        raise ValueError(f"{name} is not a link: {', '.join(LINKS)} or such as 40mbit")
    return Link(float(match[1]) * (1000 if match[2] == "g" else 1))
