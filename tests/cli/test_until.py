"""``--until``: the meaning of each way to write it, also in nights in which the clocks change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from cpulm.cli.until import parse_until
from cpulm.errors import SettingsError

pytestmark = pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be set here")


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rules of Berlin, written out, so that no table of time zones is needed."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def local(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("now", "text", "expected"),
    [
        # the next time that it is that o'clock
        ("2026-11-21T23:00", "07:00", "2026-11-22T07:00+01:00"),
        ("2026-11-21T23:00", "7:00", "2026-11-22T07:00+01:00"),
        ("2026-11-21T23:00", " 07:00:30 ", "2026-11-22T07:00:30+01:00"),
        ("2026-11-21T05:00", "07:00", "2026-11-21T07:00+01:00"),
        ("2026-11-21T07:00", "07:00", "2026-11-22T07:00+01:00"),
        ("2026-12-31T23:00", "0:30", "2027-01-01T00:30+01:00"),
        # a present in another zone
        ("2026-11-21T22:00+00:00", "07:00", "2026-11-22T07:00+01:00"),
        # a date and a time
        ("2026-11-21T23:00", "2026-11-22 07:00", "2026-11-22T07:00+01:00"),
        ("2026-11-21T23:00", "2026-11-22 7:00", "2026-11-22T07:00+01:00"),
        ("2026-11-21T23:00", "2026-07-01T07:00:05", None),
        ("2026-06-21T23:00", "2026-07-01T07:00:05", "2026-07-01T07:00:05+02:00"),
        ("2026-11-21T23:00", "2026-11-22T07:00+03:00", "2026-11-22T05:00+01:00"),
        ("2026-11-21T23:00", "2026-11-22T07:00Z", "2026-11-22T08:00+01:00"),
        # summer time begins on 29 March at 02:00: the night is an hour shorter
        ("2026-03-28T23:00", "07:00", "2026-03-29T07:00+02:00"),
        ("2026-03-28T23:00", "02:30", "2026-03-29T03:30+02:00"),
        ("2026-03-29T01:00", "02:30", "2026-03-29T03:30+02:00"),
        # and ends on 25 October at 03:00: the night is an hour longer, and has 02:30 twice
        ("2026-10-24T23:00", "07:00", "2026-10-25T07:00+01:00"),
        ("2026-10-24T23:00", "02:30", "2026-10-25T02:30+02:00"),
        ("2026-10-25T02:45+02:00", "02:30", "2026-10-25T02:30+01:00"),
        ("2026-10-25T02:45+01:00", "02:30", "2026-10-26T02:30+01:00"),
        ("2026-10-25T02:15+02:00", "2026-10-25 02:30", "2026-10-25T02:30+02:00"),
        ("2026-10-25T02:45+02:00", "2026-10-25 02:30", "2026-10-25T02:30+01:00"),
        ("2026-03-28T23:00", "2026-03-29 02:30", "2026-03-29T03:30+02:00"),
    ],
)
def test_the_moment_meant(now: str, text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(SettingsError, match="has passed"):
            parse_until(text, local(now))
        return
    moment = parse_until(text, local(now))
    assert moment.isoformat() == local(expected).isoformat()


def test_a_night_in_which_the_clocks_change_has_its_own_length() -> None:
    def hours(evening: str) -> float:
        now = local(evening)
        return (parse_until("07:00", now).timestamp() - now.timestamp()) / 3600

    assert [hours(f"{day}T23:00") for day in ("2026-03-27", "2026-03-28", "2026-10-24")] == [8, 7, 9]


@pytest.mark.parametrize(
    "text",
    ["", "7", "7am", "24:00", "12:60", "-1:00", "07:00+01:00", "2026-11-22", "2026-02-30 07:00", "tomorrow",
     "22.11.2026 07:00", "2026-11-22 07:00 CET", "9999-99-99 00:00", "8h"],
)  # fmt: skip
def test_an_invalid_time_is_named_with_examples(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_until(text, local("2026-11-21T23:00"))
    assert repr(text) in caught.value.message
    assert "07:00" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_moment_that_has_passed_is_refused_with_the_time_it_is() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_until("2026-11-21 22:59", local("2026-11-21T23:00"))
    assert caught.value.message == "'2026-11-21 22:59' has passed: it is 2026-11-21 23:00:00 now"


def test_without_a_present_it_is_the_real_one() -> None:
    moment = parse_until("07:00")
    left = moment - datetime.now(timezone.utc)
    assert 0 < left.total_seconds() <= 25 * 3600
    assert (moment.hour, moment.minute, moment.second) == (7, 0, 0)
