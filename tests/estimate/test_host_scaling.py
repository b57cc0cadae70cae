"""The model of several hosts: what is sent, what it costs, what limits, how many are of use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cpulm.errors import SettingsError
from cpulm.estimate.host_scaling import (
    GOODPUT,
    GRADIENTS_HIDDEN,
    UPDATES_HIDDEN,
    Exchange,
    Network,
    UpdateCost,
    network_of,
    scaling,
    useful_hosts,
)

COST = UpdateCost(
    rows=16,
    tokens=4096,
    rows_seconds=0.8,
    backward_seconds=0.5,
    optimizer_seconds=0.2,
    parameters=10_000_000,
)
FAST, SLOW = network_of("1gbit"), network_of("100mbit")
SYNC, DILOCO = Exchange("sync", "none"), Exchange("diloco", "int2", every=7)


def test_one_host_has_no_network() -> None:
    one = scaling(COST, SYNC, SLOW, 1, grows=False)
    assert (one.update_seconds, one.efficiency, one.sent_bytes, one.limit) == (1.0, 1.0, 0.0, "")


@pytest.mark.parametrize(("hosts", "factor"), [(2, 1.0), (4, 1.5), (8, 1.75)])
def test_a_ring_sends_twice_the_gradients_but_for_a_part(hosts: int, factor: float) -> None:
    found = scaling(COST, SYNC, Network(1e9, 0.0), hosts, grows=True)
    assert found.sent_bytes == factor * 40_000_000
    transfer = found.sent_bytes * 8 / 1e9 / GOODPUT
    hidden = GRADIENTS_HIDDEN * min(transfer, COST.backward_seconds)
    assert found.update_seconds == pytest.approx(1.0 + transfer - hidden)
    assert found.efficiency == pytest.approx(1.0 / found.update_seconds)
    assert found.limit == "network"


def test_hosts_that_share_a_batch_share_all_but_the_optimizers() -> None:
    found = scaling(COST, SYNC, Network(1e15, 0.0), 4, grows=False)
    assert found.rows == 4
    assert found.update_seconds == pytest.approx(0.8 / 4 + 0.2, rel=1e-4)
    assert found.efficiency == pytest.approx(1 / (4 * 0.4), rel=1e-4)
    assert found.limit == "optimizer"


def test_divided_matrices_take_a_part_of_the_time_and_are_sent_once_more() -> None:
    muon = replace(COST, divided_parameters=8_000_000)
    found = scaling(muon, SYNC, Network(1e15, 0.0), 4, grows=False)
    assert found.update_seconds == pytest.approx((0.8 + 0.2) / 4, rel=1e-4)
    assert found.sent_bytes == 0.75 * (2 * 40_000_000 + 32_000_000)
    assert scaling(muon, DILOCO, FAST, 4, grows=False) == scaling(COST, DILOCO, FAST, 4, grows=False)


def test_an_exchange_hides_under_the_computation_beside_it_but_not_longer_than_that() -> None:
    muon = replace(COST, divided_parameters=8_000_000)
    for network in (FAST, SLOW):
        gradients, updates = (values * 4 / network.bytes_per_second for values in (10e6, 4e6))
        hidden = GRADIENTS_HIDDEN * min(gradients, 0.5) + UPDATES_HIDDEN * min(updates, 0.1)
        found = scaling(muon, SYNC, replace(network, latency_seconds=0.0), 2, grows=True)
        assert found.update_seconds == pytest.approx(0.9 + gradients + updates - hidden)


def test_the_processor_carries_what_is_sent() -> None:
    carried = replace(COST, carrying_seconds_per_byte=1e-9)
    plain, found = (scaling(cost, SYNC, FAST, 2, grows=True) for cost in (COST, carried))
    assert found.update_seconds - plain.update_seconds == pytest.approx(0.04)


def test_rounds_send_a_hundredth() -> None:
    every, rounds = (scaling(COST, exchange, SLOW, 2, grows=True) for exchange in (SYNC, DILOCO))
    assert every.sent_bytes / rounds.sent_bytes == pytest.approx(7 * 4 / (1 / 4 + 4 / 256))
    assert every.efficiency < 0.3
    assert rounds.efficiency > 0.95


def test_latency_grows_with_the_hosts_and_limits_small_models() -> None:
    small = replace(COST, parameters=1000, rows_seconds=0.01, optimizer_seconds=0.001)
    far = network_of("100mbit,50ms")
    losses = [1 - scaling(small, SYNC, far, hosts, grows=True).efficiency for hosts in (2, 4, 8)]
    assert losses == sorted(losses)
    assert scaling(small, SYNC, far, 8, grows=True).limit == "latency"
    assert useful_hosts(small, SYNC, far, grows=False) == 1


def test_more_hosts_are_in_vain_where_twice_as_many_gain_less_than_a_tenth() -> None:
    network = network_of("10gbit")
    useful = useful_hosts(COST, SYNC, network, grows=False)
    before, there, after = (
        scaling(COST, SYNC, network, n, grows=False).tokens_per_second
        for n in (useful // 2, useful, 2 * useful)
    )
    assert there >= 1.1 * before
    assert after < 1.1 * there
    assert useful_hosts(COST, DILOCO, FAST, grows=True) == 64


def test_a_batch_has_rows_for_as_many_hosts_as_rows() -> None:
    free = Network(1e15, 0.0)
    assert useful_hosts(replace(COST, optimizer_seconds=0.0), SYNC, free, grows=False) == 16


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("1gbit", Network(1e9)),
        ("100mbit", Network(1e8)),
        ("2.5Gbit/s", Network(2.5e9)),
        ("100mbit,50ms", Network(1e8, 0.025)),
        ("512 kbit, 8 ms", Network(512e3, 0.004)),
    ],
)
def test_networks_are_written_as_people_do(text: str, network: Network) -> None:
    assert network_of(text) == network


@pytest.mark.parametrize("text", ["", "fast", "0gbit", "1gb", "100", "100mbit,fast", "-1mbit"])
def test_another_network_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a network"):
        network_of(text)
