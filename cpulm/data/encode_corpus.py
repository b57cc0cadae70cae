"""Encodes the text of a run on all cores, and writes the tokens in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from cpulm.data.encoder import END, CountingEncode, bulk_encoder, counting_losses, safe_border
from cpulm.data.marked_text import encoder_of_marks, marked
from cpulm.data.pretoken_cache import Ids
from cpulm.data.records.seen_values import SeenValues
from cpulm.data.split import Corpus, Split
from cpulm.data.write import FolderWriter
from cpulm.progress import Stage

JOB_CHARACTERS = 1 << 18
"""Text that one thread encodes at a time: well under a second even for the slowest tokenizers."""

_POLL_SECONDS = 0.1


def encode_corpus(corpus: Corpus, folder: FolderWriter, seen: SeenValues, stage: Stage) -> None:
    """Encode all text on all cores, in order.

    Args:
        seen: counts the values of columns in the training split.
        stage: counts the bytes of text.
    """
    threads = _usable_cores()
    tokenizer = folder.tokenizer
    encode = encoder_of_marks(tokenizer, counting_losses(tokenizer, bulk_encoder(tokenizer)))
    with ThreadPoolExecutor(threads, thread_name_prefix="cpulm-encode") as pool:
        jobs = _EncodeJobs(pool, encode, folder, stage, limit=2 * threads)
        try:
            for part in corpus.parts():
                folder.splits[part.split].note(part.document, part.text, part.marks)
                if part.split == "train":
                    seen.add(part.values)
                text = marked(part.text, part.marks) if part.marks else part.text
                jobs.add(part.split, text + END if part.ends else text, part.source_bytes)
            jobs.finish()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _EncodeJobs:
    """Gathers text into jobs of even size, encodes them in a pool and writes them in order."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        encode: CountingEncode,
        folder: FolderWriter,
        stage: Stage,
        limit: int,
    ) -> None:
        self._pool = pool
        self._encode = encode
        self._folder = folder
        self._stage = stage
        self._limit = limit
        self._texts: dict[Split, list[str]] = {"train": [], "val": []}
        self._sizes: dict[Split, int] = {"train": 0, "val": 0}
        self._source_bytes = 0
        self._running: deque[tuple[Split, Future[tuple[Ids, int]], int]] = deque()

    def add(self, split: Split, text: str, source_bytes: int) -> None:
        """Add text; send off what fills a job, cut at a safe border."""
        self._texts[split].append(text)
        self._sizes[split] += len(text)
        self._source_bytes += source_bytes
        if self._sizes[split] >= JOB_CHARACTERS:
            gathered = "".join(self._texts[split])
            border = safe_border(gathered)
            self._send(split, gathered[:border])
            self._texts[split] = [gathered[border:]]
            self._sizes[split] = len(gathered) - border

    def finish(self) -> None:
        """Encode and write the rest."""
        for split, texts in self._texts.items():
            self._send(split, "".join(texts))
        while self._running:
            self._write_oldest()

    def _send(self, split: Split, text: str) -> None:
        self._running.append((split, self._pool.submit(self._encode, text), self._source_bytes))
        self._source_bytes = 0
        while len(self._running) > self._limit:
            self._write_oldest()

    def _write_oldest(self) -> None:
        split, future, source_bytes = self._running.popleft()
        while not wait([future], timeout=_POLL_SECONDS).done:
            self._stage.advance()
        self._folder.splits[split].write(*future.result())
        self._stage.advance(source_bytes)


def _usable_cores() -> int:
    """The cores that this process may run on."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
