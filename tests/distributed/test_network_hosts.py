"""The harness itself: hosts in network namespaces reach each other by name, lose packets, and are cut off."""

from __future__ import annotations

import subprocess
import sys

import pytest
from network_hosts import LINKS, Host, link_named, network, why_not

pytestmark = pytest.mark.skipif(bool(why := why_not()), reason=str(why))

LISTEN = """
import socket
server = socket.create_server(("0.0.0.0", 5000))
print(socket.gethostname(), socket.gethostbyname(socket.gethostname()), flush=True)
connection, _ = server.accept()
received = 0
while content := connection.recv(1 << 16):
    received += len(content)
print(received)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=20) as connection:
    connection.sendall(bytes(200_000))
"""


def listener(host: Host) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = host.start(
        [sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().split() == [host.name, "127.0.1.1"]
    return process


@pytest.mark.parametrize("link", ["1gbit", "50ms-1%"])
def test_all_bytes_arrive_at_the_host_of_a_name(link: str) -> None:
    with network(2, LINKS[link]) as (first, second):
        receiver = listener(first)
        sender = second.start([sys.executable, "-c", SEND, first.name])
        assert receiver.communicate(timeout=60)[0] == "200000\n"
        assert sender.wait(60) == 0
        assert 200_000 < second.sent_bytes() < 300_000


@pytest.mark.parametrize("link", ["1gbit", "50ms"])
def test_a_host_that_is_cut_off_comes_back(link: str) -> None:
    with network(2, LINKS[link]) as (first, second):
        receiver = listener(first)
        first.cut_off()
        reached = ["timeout", "1", sys.executable, "-c", SEND, first.name]
        assert second.start(reached, stderr=subprocess.DEVNULL).wait(60) != 0
        first.connect()
        second.start([sys.executable, "-c", SEND, first.name])
        assert receiver.communicate(timeout=60)[0].endswith("200000\n")


def test_a_killed_host_leaves_nothing_running() -> None:
    with network(2, LINKS["1gbit"]) as (first, _):
        process = listener(first)
        first.kill()
        assert process.returncode is not None


def test_links_have_names() -> None:
    assert link_named("40mbit").mbit == 40
    assert link_named("2gbit").mbit == 2000
    with pytest.raises(ValueError, match="fast is not a link"):
        link_named("fast")
