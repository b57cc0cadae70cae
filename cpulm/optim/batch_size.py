"""How many matrices Muon updates at once, for it and for the estimate of memory, which loads no torch."""

from __future__ import annotations

MUON_ELEMENTS_AT_ONCE = 1 << 22
"""Elements in one batch of matrices: enough to keep the products busy, and not a second copy of the model."""
