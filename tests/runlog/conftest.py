"""Shared by these tests: a small run as events."""

from one_run import events, started, step

__all__ = ["events", "started", "step"]
