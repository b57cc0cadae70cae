"""Trained models for the tests of exports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_exports import trained as trained  # a fixture


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread only waits for the first in such small models, the longer the busier the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
