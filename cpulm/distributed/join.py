"""Joins the processes of a run, as torchrun and ``cpulm train --nproc`` start them."""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from cpulm import __version__
from cpulm.distributed.network import answer_of, use_interface, within
from cpulm.distributed.pulse import Pulse, in_short
from cpulm.distributed.world import SOLO, World
from cpulm.errors import CpulmError, LostPeerError, SettingsError
from cpulm.system.process import host_name, start_token

WORDS_SECONDS = 10
"""How long a process that ends waits for the main one on its machine to say why."""
CONNECT_SECONDS = 40
"""How long all first connections together may take."""
_LEAST_SECONDS = 5
"""What is left of that at least for the last of them."""
START = "CPULM_START"
"""Set by the launchers: the same word in all processes that start together, and another at the next start."""
AGAIN = "CPULM_STARTED_AGAIN"
"""Set by the launcher from the second start on: the processes have reached each other before."""
HOSTS_RENDEZVOUS = "CPULM_HOSTS_RENDEZVOUS"
"""Set by the launcher on the machine where the processes meet."""
_PATIENCE = timedelta(days=30)
"""Of exchanges: whether the others live, the pulse knows."""


def is_worker() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(*, has_run: bool = False) -> Iterator[World]:
    """Join the other processes for the time of the block.

    The main process is one that has the run's folder, or is where the rendezvous is.

    How the block ends is told to the others. The other processes leave it when the main one has, with its
    exit code; only the main process, and others on other machines, say why.

    Args:
        has_run: whether the run to continue is on this machine.

    Raises:
        SettingsError: if the others cannot be reached.
        LostPeerError: likewise, if they could be before.
        CpulmError: what another process ended with.
    """
    if not is_worker():
        yield SOLO
        return
    world, pulse, close = _join(has_run)
    try:
        yield world
        if not world.is_main:
            pulse.wait_for_main()
        pulse.end(None)
    except CpulmError as error:
        pulse.end(error)
        if not world.is_main and world.hosts[world.rank] == world.hosts[0]:
            _wait_for_end(pulse.pids_here[0])  # the launcher ends the main process, which first says why
            raise SystemExit(error.exit_code) from error
        raise
    finally:
        close()


def _join(has_run: bool) -> tuple[World, Pulse, Callable[[], None]]:
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore  # torch.distributed does not list it

    if not dist.is_available():
        raise without_gloo(host_name())
    size, local_size = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    use_interface(os.environ["MASTER_ADDR"], one_host=size == local_size)
    timeout = timedelta(seconds=CONNECT_SECONDS)
    deadline = time.monotonic() + CONNECT_SECONDS
    # torch tries IPv6 for this long, and then IPv4.
    reach = timeout if os.environ["RANK"] == "0" else timeout / 2
    # A launcher keeps the store from one start of the processes to the next.
    start = os.environ.get(START) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefix = f"cpulm/{start}"
    try:
        store, rank, size = _reached(address, reach)
        store.set_timeout(timeout)
        store = PrefixStore(prefix, store)
        rank, who = _introduced(store, rank, size, has_run)
        left = timedelta(seconds=max(deadline - time.monotonic(), _LEAST_SECONDS))
        store.set_timeout(left)
        within(
            left.total_seconds() + _LEAST_SECONDS,
            lambda: dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=left),
        )
        store.set_timeout(timeout)
    except (RuntimeError, ValueError, TimeoutError) as error:  # torch's, of sockets
        raise (LostPeerError if AGAIN in os.environ else SettingsError)(
            f"{host_name()} cannot reach the other processes of the run at {address}: {in_short(error)}",
            _how_to_reach(os.environ["MASTER_ADDR"]),
        ) from error
    group = dist.group.WORLD
    assert group is not None
    group.set_timeout(_PATIENCE)
    hosts = [one["host"] for one in who]
    names = [f"{host}, process {number + 1} of {size}" for number, host in enumerate(hosts)]
    here = [one["pid"] for one in who if one["host"] == host_name() and one["pid"] != os.getpid()]
    mine: Any = store.underlying_store  # torch's stubs know no clone()
    own = PrefixStore(prefix, mine.clone())
    pulse = Pulse(store, own, rank, names, here)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return World(rank, size, local_rank, local_size, hosts, group, pulse), pulse, dist.destroy_process_group


def _how_to_reach(main: str) -> str:
    """What to do if the processes do not reach each other, of which the first is on the host ``main``."""
    try:
        ipaddress.ip_address(main)
    except ValueError:
        if START not in os.environ and "TORCHELASTIC_RUN_ID" in os.environ:
            return (
                f"{main} is the name of the machine that torchrun told the others: give each torchrun "
                "--local-addr with the address of its machine, such as 192.168.1.5"
            )
    return (
        "see what the others say, that no other program uses this port, and that addresses and ports are "
        "open between the hosts; GLOO_SOCKET_IFNAME names the network interface to use"
    )


def _reached(address: str, reach: timedelta) -> tuple[Any, int, int]:
    """The store of the rendezvous, the rank of this process and how many there are."""
    from torch.distributed.rendezvous import rendezvous

    try:
        found = answer_of(address, lambda: next(rendezvous("env://", timeout=reach)), CONNECT_SECONDS + 5)
    except SettingsError as error:
        if AGAIN not in os.environ:
            raise
        raise LostPeerError(error.message) from error  # it has answered before
    store, rank, size = found
    return store, rank, size


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + WORDS_SECONDS
    while start_token(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)


def _introduced(store: Any, rank: int, size: int, has_run: bool) -> tuple[int, list[dict[str, Any]]]:
    """Tell the others who this process is; return its rank behind the main one, and what every rank says.

    Raises:
        SettingsError: if one of them cannot take part.
    """
    import torch.distributed as dist

    claim = 2 if has_run else int(HOSTS_RENDEZVOUS in os.environ)
    facts = {"cpulm": __version__, "gloo": dist.is_gloo_available()}
    mine = {"host": host_name(), "pid": os.getpid(), "claim": claim, **facts}
    store.set(f"who/{rank}", json.dumps(mine))
    told = [_told(store, other, size) for other in range(size)]
    claims = [int(one["claim"]) for one in told]
    main = claims.index(max(claims))
    who = [*told[main:], *told[:main]]
    if (problem := _misfit(who)) is not None:
        store.set(f"refused/{rank}", "")
        with suppress(RuntimeError):  # who keeps the store stays until all have read it
            store.wait([f"refused/{other}" for other in range(size)], timedelta(seconds=WORDS_SECONDS))
        raise problem
    return (rank - main) % size, who


def _told(store: Any, rank: int, size: int) -> dict[str, Any]:
    """What the process ``rank`` says of itself; RuntimeError if it does not come."""
    try:
        facts: dict[str, Any] = json.loads(store.get(f"who/{rank}"))
    except RuntimeError as error:
        if "timeout" not in str(error):
            raise
        raise RuntimeError(f"process {rank + 1} of {size} did not come") from error
    return facts


def _misfit(who: Sequence[Mapping[str, Any]]) -> SettingsError | None:
    """Why these processes cannot train together: another version may not even understand the others."""
    for one in who:
        if not one.get("gloo", True):
            return without_gloo(one["host"])
        version, main = (each.get("cpulm", "an older one") for each in (one, who[0]))
        if version != main:
            return SettingsError(
                f"the version of cpulm on {one['host']} is {version}, and on {who[0]['host']} {main}",
                "install the same cpulm on all hosts",
            )
    return None


def require_gloo() -> None:
    """Raise SettingsError if the torch of this host cannot connect processes."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        raise without_gloo(host_name())


def without_gloo(host: str) -> SettingsError:
    """The error of a host whose torch cannot connect processes."""
    return SettingsError(
        f"torch on {host} was built without gloo, which connects the processes of a run",
        "install the torch of pytorch.org, or train in one process: --nproc 1",
    )
