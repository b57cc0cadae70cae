"""Encodes the text of a run in several threads, and writes the tokens in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from cpulm.data.bpe_encoder import Ids
from cpulm.data.encoder import safe_border, to_bytes, to_text
from cpulm.data.joined import END_BYTE
from cpulm.data.marked_text import encoder_of_jobs, marked
from cpulm.data.records.seen_values import SeenValues
from cpulm.data.split import BEGIN, Corpus, FilePlace, Split, SplitBlock
from cpulm.data.write import FolderWriter
from cpulm.progress import Stage

JOB_CHARACTERS = 1 << 18
"""Text that one thread encodes at a time: well under a second even for the slowest tokenizers."""

_POLL_SECONDS = 0.1


def encode_corpus(corpus: Corpus, folder: FolderWriter, seen: SeenValues, stage: Stage) -> None:
    """Encode all text in several threads, in order, from where ``folder`` was left.

    Args:
        seen: counts the values of columns in the training split.
        stage: counts the bytes of text.
    """
    kept = folder.kept
    place, done = (FilePlace(*kept["place"]), kept["parts"]) if kept else (BEGIN, 0)
    if kept:
        seen.restore(kept["seen"])
        stage.advance(kept["source_bytes"])
    threads = _usable_cores()
    tokenizer = folder.tokenizer
    encode = encoder_of_jobs(tokenizer)
    with ThreadPoolExecutor(threads, thread_name_prefix="cpulm-encode") as pool:
        jobs = _EncodeJobs(pool, encode, folder, stage, kept["texts"] if kept else {}, limit=2 * threads)
        try:
            # A file's parts are encoded in order. Of the file where the work ended, the first ones are done.
            parts = 0
            for part in corpus.blocks(place):
                parts = parts + 1 if part.place == place else 1
                if part.place == place and parts <= done:
                    continue
                place, done = part.place, parts
                writer = folder.splits[part.split]
                if isinstance(part, SplitBlock):
                    writer.note_block(part.documents, part.data)
                    if part.split == "train":
                        seen.add_block(part.values)
                    jobs.add(part.split, part.data, part.source_bytes)
                else:
                    writer.note(part.document, part.text, part.marks)
                    if part.split == "train":
                        seen.add(part.values)
                    text = marked(part.text, part.marks) if part.marks else part.text
                    data = to_bytes(text)
                    jobs.add(part.split, data + END_BYTE if part.ends else data, part.source_bytes)
                if folder.work.due():
                    left = {split: to_text(data) for split, data in jobs.write_running().items()}
                    where = {"place": place, "parts": done, "texts": left, "source_bytes": stage.done}
                    folder.keep({**where, "seen": seen.state()})
            jobs.finish()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _EncodeJobs:
    """Gathers text into jobs of even size, encodes them in a pool and writes them in order."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        encode: Callable[[bytes], tuple[Ids, int]],
        folder: FolderWriter,
        stage: Stage,
        texts: dict[Split, str],
        limit: int,
    ) -> None:
        self._pool = pool
        self._encode = encode
        self._folder = folder
        self._stage = stage
        self._limit = limit
        splits: tuple[Split, Split] = ("train", "val")
        self._texts = {split: [to_bytes(texts.get(split, ""))] for split in splits}
        self._sizes = {split: len(self._texts[split][0]) for split in splits}
        self._source_bytes = 0
        self._running: deque[tuple[Split, Future[tuple[Ids, int]], int]] = deque()

    def add(self, split: Split, data: bytes, source_bytes: int) -> None:
        """Add text in UTF-8; send off what fills a job, cut at a safe border."""
        self._texts[split].append(data)
        self._sizes[split] += len(data)
        self._source_bytes += source_bytes
        if self._sizes[split] >= JOB_CHARACTERS:
            gathered = b"".join(self._texts[split])
            border = _border(gathered)
            self._send(split, gathered[:border])
            self._texts[split] = [gathered[border:]]
            self._sizes[split] = len(gathered) - border

    def write_running(self) -> dict[Split, bytes]:
        """Write all that was sent off; return the text that was not."""
        while self._running:
            self._write_oldest()
        self._stage.advance(self._source_bytes)
        self._source_bytes = 0
        return {split: b"".join(texts) for split, texts in self._texts.items()}

    def finish(self) -> None:
        """Encode and write the rest."""
        for split, data in self.write_running().items():
            self._send(split, data)
        self.write_running()

    def _send(self, split: Split, data: bytes) -> None:
        self._running.append((split, self._pool.submit(self._encode, data), self._source_bytes))
        self._source_bytes = 0
        while len(self._running) > self._limit:
            self._write_oldest()

    def _write_oldest(self) -> None:
        split, future, source_bytes = self._running.popleft()
        while not wait([future], timeout=_POLL_SECONDS).done:
            self._stage.advance()
        self._folder.splits[split].write(*future.result())
        self._stage.advance(source_bytes)


def _border(data: bytes) -> int:
    """Where to cut a text in UTF-8: behind a document, or as :func:`cpulm.data.encoder.safe_border` says."""
    if data.endswith(END_BYTE):
        return len(data)
    text = to_text(data)
    return len(to_bytes(text[: safe_border(text)]))


def _usable_cores() -> int:
    """The cores that this process may run on."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
