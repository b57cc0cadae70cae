"""A curve of any length in bounded memory, and the speed over the last seconds. Both are immutable."""

from __future__ import annotations

import math
from typing import NamedTuple

_MOST_BUCKETS = 512
_CHUNK_SECONDS = 0.5
_MOST_CHUNKS = 20


class Bucket(NamedTuple):
    """Neighbouring points, summarized by their range; it holds ``points`` finite values."""

    first: int
    last: int
    low: float
    high: float
    total: float
    points: int

    @property
    def mean(self) -> float:
        return self.total / self.points

    def joined(self, other: Bucket) -> Bucket:
        """Merge this bucket and the next one."""
        return Bucket(
            self.first,
            other.last,
            min(self.low, other.low),
            max(self.high, other.high),
            self.total + other.total,
            self.points + other.points,
        )


class ThinnedCurve(NamedTuple):
    """Values over steps, halved in number as they grow; buckets keep peaks and troughs.

    ``span`` points make one bucket. At ``2 * _MOST_BUCKETS`` buckets, neighbours are merged and ``span``
    doubles, so the cost of adding a point does not depend on the run's length.
    """

    closed: tuple[Bucket, ...] = ()
    filling: Bucket | None = None
    span: int = 1

    def add(self, step: int, value: float) -> ThinnedCurve:
        """The curve with one more point; values that are not finite are left out."""
        if not math.isfinite(value):
            return self
        point = Bucket(step, step, value, value, value, 1)
        filling = point if self.filling is None else self.filling.joined(point)
        if filling.points < self.span:
            return ThinnedCurve(self.closed, filling, self.span)
        closed = (*self.closed, filling)
        if len(closed) < 2 * _MOST_BUCKETS:
            return ThinnedCurve(closed, None, self.span)
        pairs = zip(closed[::2], closed[1::2], strict=True)
        return ThinnedCurve(tuple(left.joined(right) for left, right in pairs), None, 2 * self.span)

    def up_to(self, step: int) -> ThinnedCurve:
        """The curve up to ``step``; a bucket that extends beyond it is kept whole."""
        kept = tuple(bucket for bucket in self.closed if bucket.first <= step)
        if len(kept) < len(self.closed):
            return ThinnedCurve(kept, None, self.span)
        filling = self.filling if self.filling is not None and self.filling.first <= step else None
        return ThinnedCurve(kept, filling, self.span)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """All buckets, by step."""
        return self.closed if self.filling is None else (*self.closed, self.filling)


class _Chunk(NamedTuple):
    seconds: float
    steps: int
    tokens: int


class Pace(NamedTuple):
    """Steps and tokens per second over the last steps: about ten seconds, or twenty steps if those are slow.

    The first step of a session, which includes warm-up and compilation, is left out once there is another.
    """

    chunks: tuple[_Chunk, ...] = ()
    seen: int = 0

    def add(self, seconds: float, tokens: int) -> Pace:
        """The pace with one more step of ``seconds`` that trained ``tokens``."""
        step = _Chunk(max(seconds, 0.0), 1, tokens)
        if self.seen < 2:
            return Pace((step,), self.seen + 1)
        newest = self.chunks[-1]
        if newest.seconds < _CHUNK_SECONDS:
            joined = _Chunk(newest.seconds + step.seconds, newest.steps + 1, newest.tokens + step.tokens)
            return Pace((*self.chunks[:-1], joined), self.seen + 1)
        return Pace((*self.chunks, step)[-_MOST_CHUNKS:], self.seen + 1)

    @property
    def steps_per_second(self) -> float | None:
        """None until a step has been timed."""
        seconds = sum(chunk.seconds for chunk in self.chunks)
        return sum(chunk.steps for chunk in self.chunks) / seconds if seconds > 0 else None

    @property
    def tokens_per_second(self) -> float | None:
        """None until a step has been timed."""
        seconds = sum(chunk.seconds for chunk in self.chunks)
        return sum(chunk.tokens for chunk in self.chunks) / seconds if seconds > 0 else None
