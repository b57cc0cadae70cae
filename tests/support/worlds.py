"""Several ranks in one process, for tests of what they exchange."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from cpulm.distributed.world import World


def in_world(size: int, work: Callable[[World], None]) -> None:
    """Do ``work`` in as many threads as ranks, connected by gloo; none may wait for another in vain."""
    store, errors = dist.HashStore(), []  # type: ignore[attr-defined]  # torch exports it in another way

    def run(rank: int) -> None:
        try:
            group: Any = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=60))
            work(World(rank, size, group=group))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)
