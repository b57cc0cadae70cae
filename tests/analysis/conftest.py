"""What the tests of analysis share: runs as their logs tell of them."""

from recorded_runs import make_run

__all__ = ["make_run"]
