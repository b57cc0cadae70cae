"""A disk that is as good as full: the system refuses larger files than given."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

has_limits = pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of files")


@contextmanager
def full_disk(room_bytes: int = 0) -> Iterator[None]:
    """Refuse to this process files of more than ``room_bytes``."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
