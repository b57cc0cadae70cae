"""Shared by the analysis tests: runs made from their logs."""

from recorded_runs import make_run

__all__ = ["make_run"]
