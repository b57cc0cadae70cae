"""What ``benchmark --hosts`` shows: the speed that more hosts would give, and what limits it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpulm.benchmark.step_benchmark import Result
    from cpulm.estimate.host_scaling import Exchange, Network, Scaling, UpdateCost
    from cpulm.settings import Settings

_ROUND = 12
"""Updates in a round, if the settings have none."""
_MOST = 64


@dataclass(frozen=True)
class _Table:
    """Numbers of hosts that work together in one way; more than ``useful`` are in vain."""

    exchange: Exchange
    grows: bool
    found: list[Scaling]
    useful: int


def show_hosts(result: Result, settings: Settings, hosts: int, network: Network, *, json: bool) -> None:
    """Estimate updates on up to ``hosts`` hosts like this one, from the update measured here."""
    from cpulm.ui.console import print_json, stdout

    tables = list(_tables(result, settings, hosts, network))
    if json:
        print_json([asdict(table) for table in tables])
        return
    console = stdout()
    for table in tables:
        console.print(_shown(table))
        console.print(_verdict(table), highlight=False)
        console.print()
    console.print(_NOTE, style="dim", highlight=False)


_NOTE = (
    "A model, not a measurement: hosts like this one, the update as measured here. In sync mode hosts that\n"
    "share the batch of one give the result of one."
)


def _tables(result: Result, settings: Settings, hosts: int, network: Network) -> Iterator[_Table]:
    from cpulm.estimate.host_scaling import Exchange, scaling, useful_hosts
    from cpulm.settings import changed

    precision, given = result.runtime["precision"], settings.distributed
    gradients_as = None if given.compression == "int2" else given.compression
    sync = changed(given, mode="sync", compression=gradients_as).sent_as(precision)
    diloco = changed(given, mode="diloco").sent_as(precision)
    counts = sorted({2**n for n in range(hosts.bit_length())} | {hosts})
    for exchange in (
        Exchange("sync", sync),
        Exchange("diloco", diloco, settings.train.outer_steps or _ROUND),
    ):
        cost = _cost(result, settings, exchange)
        for grows in (False, True):
            fitting = [n for n in counts if grows or n <= cost.rows]
            found = [scaling(cost, exchange, network, n, grows=grows) for n in fitting]
            useful = useful_hosts(cost, exchange, network, grows=grows, most=_MOST)
            yield _Table(exchange, grows, found, useful)


def _cost(result: Result, settings: Settings, exchange: Exchange) -> UpdateCost:
    from cpulm.benchmark.handling import handling_seconds
    from cpulm.estimate.host_scaling import CARRYING_SECONDS_PER_BYTE, UpdateCost
    from cpulm.execution.runtime import choose_runtime
    from cpulm.model.counts import count
    from cpulm.system.machine import read_machine

    kernels = choose_runtime(settings.runtime, read_machine(), settings.model).int8_kernels
    quantize = None if kernels is None else kernels.left
    parts, train = result.fastest.parts, settings.train
    by_part = count(settings.model, 1).by_part
    matrices = by_part["attention"] + by_part["mlp"]
    return UpdateCost(
        rows=train.micro_batch_size * train.grad_accum_steps,
        tokens=result.tokens_per_step,
        rows_seconds=result.fastest.step_seconds - parts["optimizer"],
        backward_seconds=parts["backward"],
        optimizer_seconds=parts["optimizer"],
        parameters=result.params_total,
        divided_parameters=matrices if train.optimizer == "muon" else 0,
        handling_seconds=handling_seconds(result.params_total, exchange.sent_as, quantize),
        carrying_seconds_per_byte=CARRYING_SECONDS_PER_BYTE / result.runtime["threads"],
    )


def _shown(table: _Table) -> Any:
    from cpulm.ui.tables import rows
    from cpulm.units import format_bytes, format_count

    batch = "a batch that grows with the hosts" if table.grows else "the batch of one host"
    every = f", rounds of {table.exchange.every} updates" if table.exchange.mode == "diloco" else ""
    lines = [
        [
            one.hosts,
            one.rows,
            f"{one.update_seconds:.3g} s",
            format_count(one.tokens_per_second),
            f"{one.efficiency:.0%}",
            format_bytes(round(one.sent_bytes)),
            one.limit,
        ]
        for one in table.found
    ]
    columns = ["hosts", "rows each", "an update", "tok/s", "efficiency", "sent in it", "limit"]
    return rows(f"{table.exchange.mode}, {batch}, sent as {table.exchange.sent_as}{every}", columns, lines)


def _verdict(table: _Table) -> str:
    rows = table.found[0].rows
    if not table.grows and 2 * table.useful > rows:
        return f"the batch has {rows} rows: none for more than {rows} hosts"
    if table.useful >= _MOST:
        return f"each doubling up to {_MOST} hosts makes it at least a tenth faster"
    if table.useful == 1:
        return "a second host is in vain: less than a tenth faster"
    return f"more than {table.useful} hosts are in vain: twice as many are less than a tenth faster"
