"""The texts that clients wait for: one thread writes them together, a token of each in a step."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import torch

from cpulm.errors import CpulmError
from cpulm.execution.adaptive_threads import AdaptiveThreads, threads_for_model
from cpulm.execution.threads_in_use import Threads
from cpulm.generation.together import Together
from cpulm.serve.completion_request import RequestError, TextRequest
from cpulm.serve.written_text import Event, Piece, ServedModel, WrittenText

MOST_JOBS = 16
"""Requests that are written or wait; the next one is told to come back."""
MOST_ROWS = 32
"""Texts that are written at once, of one request or of several."""
_FLUSH_SECONDS = 0.02
"""Between two pieces of a text: each takes time of a core that the model computes with."""
_PREPARERS = 4
"""Threads that read prompts and schemas, so that a huge one holds up nobody else."""


class Job:
    """One request on its way; ``events`` end with None, or with an error."""

    def __init__(self, request: TextRequest) -> None:
        self.request = request
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.has_left = False
        self._loop = asyncio.get_running_loop()
        self._held: list[Event] = []
        self._next_seconds = 0.0

    def cancel(self) -> None:
        """Write no more."""
        self.has_left = True

    def emit(self, event: Event) -> None:
        """Pass an event on with the next :meth:`flush`."""
        for place, held in enumerate(self._held):
            if isinstance(held, Piece) and (both := held.followed_by(event)):
                self._held[place] = both
                return
        self._held.append(event)

    def flush(self, *, at_once: bool = False) -> None:
        """Pass on, from another thread, what has been emitted, unless a moment ago some has been."""
        now = time.monotonic()
        if not self._held or self._loop.is_closed() or not (at_once or now >= self._next_seconds):
            return
        self._loop.call_soon_threadsafe(self._arrive, self._held)
        self._held, self._next_seconds = [], now + _FLUSH_SECONDS

    def _arrive(self, events: list[Event]) -> None:
        for event in events:
            self.events.put_nowait(event)


class _Prepared(NamedTuple):
    """A request whose prompt and rules have been read."""

    job: Job
    text: WrittenText


class ModelQueue:
    """Writes for all clients at once.

    A request joins the others at their next token, the one that came first before the others. It waits while
    there are too many texts, or their keys and values take too much memory.
    """

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self._jobs: set[Job] = set()
        self._preparing = ThreadPoolExecutor(_PREPARERS, "cpulm-serve-prepare")
        self._arrived: queue.SimpleQueue[_Prepared | None] = queue.SimpleQueue()
        self._waiting: list[_Prepared] = []
        self._written: list[_Prepared] = []
        # What a thread of its own computes with is not what the main thread was given
        self._thread = threading.Thread(target=self._run, args=(torch.get_num_threads(),), daemon=True)
        self._thread.start()

    def submit(self, request: TextRequest) -> Job:
        """Put a request in the queue.

        Raises:
            RequestError: if it is full.
        """
        if len(self._jobs) >= MOST_JOBS:
            raise RequestError("too many requests wait; try again later", 429, code="rate_limit_exceeded")
        job = Job(request)
        self._jobs.add(job)
        self._preparing.submit(self._prepare, job)
        return job

    def close(self) -> None:
        """Cancel all that is written or waits."""
        for job in list(self._jobs):
            job.cancel()
        self._preparing.shutdown(wait=True)
        self._arrived.put(None)
        self._thread.join()

    def _prepare(self, job: Job) -> None:
        with self._answering(job):
            if not job.has_left:
                self._arrived.put(_Prepared(job, WrittenText(self.served, job.request, job.emit)))
                return
        self._jobs.discard(job)

    @contextmanager
    def _answering(self, job: Job) -> Iterator[None]:
        """Tell the client of what goes wrong, and the server of nothing: it goes on."""
        try:
            yield
        except CpulmError as error:
            hint = f": {error.hint}" if error.hint else ""
            self._end(job, RequestError(f"{error.message}{hint}"))
        except Exception as error:
            self._end(job, error)

    def _end(self, job: Job, event: Event) -> None:
        job.emit(event)
        job.flush(at_once=True)
        self._jobs.discard(job)

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        together, changes = Together(self.served.model), ExitStack()
        used: AdaptiveThreads[Threads] | None = None
        while self._take_arrived():
            before = self._rows
            self._admit()
            if self._rows != before or used is None:
                changes.close()
                used = changes.enter_context(threads_for_model(self.served.model, self._rows))
            began = time.perf_counter()
            self._step(together)
            used.update_done(time.perf_counter() - began, f"{self._rows} texts")
            if not self._written:
                changes.close()
                used = None
        changes.close()

    @property
    def _rows(self) -> int:
        return sum(text.generation.cache.batch_size for _, text in self._written)

    def _take_arrived(self) -> bool:
        """Wait for a request if there is none; False once the queue is closed."""
        is_idle = not self._written and not self._waiting
        with suppress(queue.Empty):
            while True:
                one = self._arrived.get(block=is_idle)
                if one is None:
                    return False
                self._waiting.append(one)
                is_idle = False
        return True

    def _admit(self) -> None:
        """Begin the texts of the requests that wait, as long as they fit beside the others."""
        for job, _ in [*self._waiting, *self._written]:
            if job.has_left:
                self._jobs.discard(job)
        self._drop_ended()
        while self._waiting and self._fits(self._waiting[0].text):
            self._written.append(self._waiting.pop(0))

    def _fits(self, text: WrittenText) -> bool:
        caches = [one.generation.cache for _, one in self._written]
        rows = sum(cache.batch_size for cache in (*caches, text.generation.cache))
        size = sum(cache.size_bytes for cache in (*caches, text.generation.cache))
        return not caches or (rows <= MOST_ROWS and size <= self.served.cache_bytes)

    def _step(self, together: Together) -> None:
        """Write a token of every text."""
        jobs = {text.generation: _Prepared(job, text) for job, text in self._written}
        running = [generation for generation in jobs if not generation.has_ended]
        try:
            for generation, logits in together.step(running):
                with self._answering(jobs[generation].job):
                    jobs[generation].text.write(logits)
        except Exception as error:  # of the model: it may be of any of them
            for job, _ in self._written:
                self._end(job, error)
        for generation, (job, text) in jobs.items():
            if generation.has_ended and job in self._jobs:
                text.end()
                self._end(job, None)
            job.flush()
        self._drop_ended()

    def _drop_ended(self) -> None:
        self._waiting = [one for one in self._waiting if one.job in self._jobs]
        self._written = [one for one in self._written if one.job in self._jobs]
