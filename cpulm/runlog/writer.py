"""Writes the run log ``metrics.jsonl``, one event per line."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from types import TracebackType

from cpulm.events import CheckpointSaved, Event, Progress, RolledBack, RunFinished, Validated, to_json

_FLUSH_SECONDS = 1.0
_MOST_PENDING_BYTES = 64 * 2**20
"""How much is kept in memory while the disk cannot be written; beyond it the oldest lines are dropped."""

_FLUSHED_AT_ONCE = (CheckpointSaved, Validated, RolledBack, RunFinished)


class MetricsWriter:
    """Listener that appends every event but :class:`Progress` to a file of JSON lines.

    Calling it costs one append; encoding and writing happen once a second in a thread of its own, and at
    once for checkpoints, validations, rollbacks and the end, and when a stage such as saving begins. A disk
    that cannot be written does not stop the run: lines wait in memory, ``on_problem`` is called once, and
    every flush tries again.

    Args:
        path: the file; new lines are appended to what it holds.
        on_problem: called with one sentence when writing fails.
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
        """Hand every line so far to the operating system, or keep it for the next try."""
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
        """Write what is pending; return what went wrong, or an empty string."""
        try:
            if self._file is not None and not self._path.exists():
                # Deleted under the run: what is written to an open file without a name is lost.
                self._file.close()
                self._file = None
            if self._file is None:
                self._file = FileIO(self._path, "a")
            while self._pending:
                # A full disk takes a part: the rest continues in the middle of its line.
                written = self._file.write(self._pending)
                del self._pending[:written]
        except OSError as error:
            self._forget_oldest()
            return f"{self._path} cannot be written ({error.strerror or error}); training continues, retrying"
        return ""

    def _forget_oldest(self) -> None:
        excess = len(self._pending) - _MOST_PENDING_BYTES
        if excess > 0:
            # The rest of a line that is half written must stay, so lines go from the first line end on.
            first = self._pending.find(b"\n") + 1
            last = self._pending.find(b"\n", first + excess) + 1
            del self._pending[first:last]
