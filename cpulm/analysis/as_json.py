"""Converts reports to plain values for JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cpulm.analysis.compare import RunComparison
from cpulm.analysis.report import Report

_DIGITS = 7
"""Significant digits, as in the log."""


def report_as_json(report: Report) -> dict[str, Any]:
    """Convert a report; curves are objects of lists."""
    plain: dict[str, Any] = _plain(report)
    return plain


def comparison_as_json(comparison: RunComparison) -> dict[str, Any]:
    """Convert a comparison, best run first, with the report of each run."""
    plain: dict[str, Any] = _plain(comparison)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        whole = value.dtype.kind == "i"
        return value.tolist() if whole else [float(f"{item:.{_DIGITS}g}") for item in value.tolist()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {spec.name: _plain(getattr(value, spec.name)) for spec in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
