"""What these tests share: one small run as its events."""

from one_run import events, started, step

__all__ = ["events", "started", "step"]
