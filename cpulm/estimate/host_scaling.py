"""What more hosts buy: a model of an update on several hosts alike, from its parts on one. Loads no torch.

Every host computes its rows of an update. In ``sync`` mode the gradients are summed by a ring: each host
sends and receives ``2 (k - 1) / k`` times their bytes, in ``2 (k - 1)`` messages. Muon's matrices are divided
over the hosts, and ``(k - 1) / k`` of them sent once more; what AdamW updates, every host does. Gradients are
sent during the backward pass, Muon's updates while others are computed.
In ``diloco`` mode the compressed changes of the weights take the same way once in a round.
``benchmarks/hosts.py`` holds the model against hosts in network namespaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cpulm.errors import SettingsError
from cpulm.settings.distributed_settings import Compression

Mode = Literal["sync", "diloco"]

GOODPUT = 0.94
"""The part of a link's rate that is left for the payload: Ethernet, IP and TCP take the rest (measured: 940
of 1000, 96 of 100 Mbit/s)."""
LAN_LATENCY_SECONDS = 0.0002
"""One way between two hosts of a local network."""
MEETINGS = {"sync": 3, "diloco": 4}
"""Exchanges of a few bytes beside the large one: in an update, and at the border of a round."""
BYTES_PER_VALUE = {"none": 4.0, "bf16": 2.0, "int8": 1 + 4 / 256, "int2": 1 / 4 + 4 / 256}
GRADIENTS_HIDDEN, UPDATES_HIDDEN = 0.7, 0.9
"""The part of an exchange that costs no time as long as the computation beside it lasts: of 51 ms in int8, 19
were waited for, and of 200 in float32 52; of 21 ms of Muon's updates 2 (``benchmarks/hosts_in_turns.py``)."""
CARRYING_SECONDS_PER_BYTE = 1.7e-9
"""What TCP costs the processor of a host that sends a byte and receives another: 55 ms of one core for 33 MB,
14 for 8.4 MB (AMD EPYC, Zen 5, network namespaces)."""
LEAST_GAIN = 0.1
"""Twice as many hosts that make a run faster by less than this are in vain."""


@dataclass(frozen=True)
class Network:
    """The link of each host: bits per second in both directions, and seconds of one way."""

    bits_per_second: float
    latency_seconds: float = LAN_LATENCY_SECONDS

    @property
    def bytes_per_second(self) -> float:
        """For the payload."""
        return self.bits_per_second * GOODPUT / 8


@dataclass(frozen=True)
class UpdateCost:
    """An update on one host.

    Attributes:
        rows_seconds: batch, forward and backward pass, of ``rows`` rows together.
        backward_seconds: the part of them under which an exchange can hide.
        optimizer_seconds: clipping and the optimizers.
        parameters: values that are exchanged.
        divided_parameters: of these, in the matrices that ``sync`` divides over the hosts. They take nearly
            all of the optimizers' time; if there are none, every host does everything.
        handling_seconds: the processor's work for one exchange of all of them.
        carrying_seconds_per_byte: its work to send a byte and to receive another.
    """

    rows: int
    tokens: int
    rows_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    parameters: int
    divided_parameters: int = 0
    handling_seconds: float = 0.0
    carrying_seconds_per_byte: float = 0.0


@dataclass(frozen=True)
class Exchange:
    """How hosts work together: ``every`` is the number of updates in a round, ``sent_as`` the compression."""

    mode: Mode
    sent_as: Compression
    every: int = 1


@dataclass(frozen=True)
class Scaling:
    """An update on ``hosts`` hosts.

    Attributes:
        efficiency: tokens per second relative to ``hosts`` times those of one.
        limit: what costs most of what is lost: ``network``, ``latency`` or ``optimizer``.
    """

    hosts: int
    rows: int
    update_seconds: float
    tokens_per_second: float
    efficiency: float
    sent_bytes: float
    limit: str


def scaling(cost: UpdateCost, exchange: Exchange, network: Network, hosts: int, *, grows: bool) -> Scaling:
    """Estimate an update on ``hosts`` hosts.

    Args:
        grows: whether the batch grows with the hosts, each of which trains the rows of one; else they share
            the rows of one, and the run's result is that of one host.
    """
    share = 1.0 if grows else 1.0 / hosts
    divided = cost.divided_parameters if exchange.mode == "sync" else 0
    optimizer = cost.optimizer_seconds / (hosts if divided else 1)
    compute = cost.rows_seconds * share + optimizer
    sent, transfer, latency, handling = 0.0, 0.0, 0.0, 0.0
    if hosts > 1:
        values = 2 * cost.parameters + divided
        sent = (hosts - 1) / hosts * values * BYTES_PER_VALUE[exchange.sent_as]
        transfer = sent / network.bytes_per_second
        latency = (MEETINGS[exchange.mode] + 1) * 2 * (hosts - 1) * network.latency_seconds
        handling = (
            cost.handling_seconds * values / (2 * cost.parameters) + cost.carrying_seconds_per_byte * sent
        )
        if exchange.mode == "sync":
            updates = transfer * divided / values
            transfer -= GRADIENTS_HIDDEN * min(transfer - updates, cost.backward_seconds * share)
            transfer -= UPDATES_HIDDEN * min(updates, optimizer)
    sent, transfer, latency, handling = (one / exchange.every for one in (sent, transfer, latency, handling))
    seconds = compute + transfer + latency + handling
    tokens = cost.tokens * (hosts if grows else 1)
    alone = cost.tokens / (cost.rows_seconds + cost.optimizer_seconds)
    losses = {
        "network": transfer + handling,
        "latency": latency,
        "optimizer": optimizer - cost.optimizer_seconds * share,
    }
    return Scaling(
        hosts=hosts,
        rows=max(1, round(cost.rows * share)),
        update_seconds=seconds,
        tokens_per_second=tokens / seconds,
        efficiency=tokens / seconds / (hosts * alone),
        sent_bytes=sent,
        limit=max(losses, key=lambda name: losses[name]) if hosts > 1 else "",
    )


def useful_hosts(
    cost: UpdateCost, exchange: Exchange, network: Network, *, grows: bool, most: int = 64
) -> int:
    """Return from how many hosts on twice as many gain less than :data:`LEAST_GAIN`; ``most`` if none do."""
    hosts = 1
    while hosts < most:
        now, then = (scaling(cost, exchange, network, n, grows=grows) for n in (hosts, 2 * hosts))
        too_many = not grows and 2 * hosts > cost.rows
        if too_many or then.tokens_per_second < (1 + LEAST_GAIN) * now.tokens_per_second:
            return hosts
        hosts *= 2
    return most


def network_of(text: str) -> Network:
    """Read ``1gbit``, ``100mbit`` or, with the time of an answer, ``100mbit,50ms``.

    Raises:
        SettingsError: if it is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg])bit(?:/s)?(?:\s*,\s*(\d+(?:\.\d+)?)\s*ms)?", text.lower())
    if match is None or not float(match[1]):
        raise SettingsError(
            f"--network {text} is not a network",
            "write it as 1gbit, 100mbit, or with a ping of 50 ms 100mbit,50ms",
        )
    rate = float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2]]
    return Network(rate) if match[3] is None else Network(rate, float(match[3]) / 2000)
