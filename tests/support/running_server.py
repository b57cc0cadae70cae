"""A server in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from cpulm.serve.server import HOST, open_port, server_of


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """Serve ``app`` on a free port; gives its address."""
    taken, server = open_port(0), server_of(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://{HOST}:{taken.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
