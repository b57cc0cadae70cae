"""Writes the run log ``metrics.jsonl``, one event per line."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from types import TracebackType

from cpulm.events import CheckpointSaved, Event, Progress, RolledBack, RunFinished, Validated, to_json
from cpulm.regular_file import open_own

_FLUSH_SECONDS = 1.0
_MOST_PENDING_BYTES = 64 * 2**20
"""The limit of pending lines while the disk cannot be written; beyond it the oldest lines are dropped."""

_FLUSHED_AT_ONCE = (CheckpointSaved, Validated, RolledBack, RunFinished)


class MetricsWriter:
    """Listener that appends every event but :class:`Progress` to a file of JSON lines.

    A call only appends to a queue. Its own thread encodes and writes the queue once a second. The queue is
    written immediately after checkpoints, validations, rollbacks and the end of the run, and when a stage
    begins, such as saving. A disk that cannot be written does not stop the run: the lines stay in memory,
    ``on_problem`` is called once, and every flush tries again.

    Args:
        path: the file; new lines are appended to its contents.
        on_problem: called with one sentence if writing fails.
    """

    def __init__(self, path: Path, on_problem: Callable[[str], None]) -> None:
        self._path = path
        self._on_problem = on_problem
        self._events: deque[Event] = deque()
        self._pending = bytearray()
        self._file: FileIO | None = None
        self._failing = False
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._flush_regularly, name="cpulm-metrics", daemon=True)

    def __enter__(self) -> MetricsWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            if not event.done:
                self.flush()
            return
        self._events.append(event)
        if isinstance(event, _FLUSHED_AT_ONCE):
            self.flush()

    def flush(self) -> None:
        """Write all pending lines to the file; keep those that cannot be written for the next attempt."""
        with self._lock:
            while self._events:
                line = to_json(self._events.popleft()) + "\n"
                # A lone surrogate becomes \udcxx, which is JSON's own escape for it.
                self._pending += line.encode("utf-8", "backslashreplace")
            problem = self._write_pending()
        if problem and not self._failing:
            self._on_problem(problem)
        self._failing = bool(problem)

    def _flush_regularly(self) -> None:
        while not self._closing.wait(_FLUSH_SECONDS):
            self.flush()

    def _write_pending(self) -> str:
        """Write the pending lines; return the problem in words, or an empty string."""
        try:
            if self._file is not None and not self._path.exists():
                # The file was deleted during the run: what is written to the open file would be lost.
                self._file.close()
                self._file = None
            if self._file is None:
                self._file = FileIO(open_own(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a")
            while self._pending:
                # A full disk accepts only a part; the rest follows later, from the middle of a line.
                written = self._file.write(self._pending)
                del self._pending[:written]
        except OSError as error:
            self._drop_oldest()
            return f"{self._path} cannot be written ({error.strerror or error}); training continues, retrying"
        return ""

    def _drop_oldest(self) -> None:
        excess = len(self._pending) - _MOST_PENDING_BYTES
        if excess > 0:
            # The rest of a partly written line must stay, so only lines after the first line end are dropped.
            first = self._pending.find(b"\n") + 1
            last = self._pending.find(b"\n", first + excess) + 1
            del self._pending[first:last]
