"""The soak tests are in ``benchmarks``; these tests run short versions of them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
