"""The comparisons with other programs are in ``benchmarks``; these tests run their own parts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
