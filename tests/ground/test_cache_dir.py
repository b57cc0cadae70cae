"""The location of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpulm.cache_dir import cache_folder


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CPULM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("CPULM_CACHE")
    assert cache_folder().parts[-1] in ("cpulm", "cache")
