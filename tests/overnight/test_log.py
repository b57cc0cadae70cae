"""The log of a night: limited in size, and continued in place."""

from __future__ import annotations

from pathlib import Path

from cpulm.overnight.log import Log


def test_the_log_stays_small_and_goes_on_in_place(tmp_path: Path) -> None:
    log = Log(tmp_path / "x.log", limit_bytes=1000)
    for number in range(100):
        log.write_line(f"line {number}")
        log.rotate(alone=True)
    kept = [path.read_text(encoding="utf-8") for path in (tmp_path / "x.log.1", tmp_path / "x.log")]
    assert all(len(text) < 1100 for text in kept)
    assert "\0" not in "".join(kept)
    assert kept[1].splitlines()[-1].endswith("line 99")
