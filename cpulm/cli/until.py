"""The moment that ``--until 07:00`` means."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from cpulm.errors import SettingsError

_O_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_DATE_AND_TIME = re.compile(r"(\d{4}-\d{2}-\d{2})[ T](\d{1,2})(:\d{2}(?::\d{2})?)(Z|[+-]\d{2}:\d{2})?")
_EXAMPLES = "write a time of day such as 07:00, or a date and a time such as 2026-11-22 07:00"


def parse_until(text: str, now: datetime | None = None) -> datetime:
    """The moment that ``text`` means, with the local time zone's offset at that moment.

    A time of day (``7:00``, ``07:00:30``) is the next time that the clock on the wall shows it, also in
    a night in which the clocks change; where it shows it twice, the first that is still to come; where
    it skips it, the moment as far after the change as the requested time. A date and a time may carry
    an offset (``2026-11-22T07:00+01:00``).

    Args:
        text: what the user wrote.
        now: the present; naive means local time.

    Raises:
        SettingsError: if the text is neither, or names a moment that has passed.
    """
    now = (now or datetime.now(timezone.utc)).astimezone()
    written = text.strip()
    try:
        moment = _next_o_clock(written, now) or _date_and_time(written, now)
    except (ValueError, OverflowError, OSError):  # 25:00, February 30, a year that no clock has
        moment = None
    if moment is None:
        raise SettingsError(f"{text!r} is not a time of day, or a date and a time", _EXAMPLES)
    if moment <= now:
        raise SettingsError(f"{text!r} has passed: it is {now:%Y-%m-%d %H:%M:%S} now", _EXAMPLES)
    return moment


def _next_o_clock(written: str, now: datetime) -> datetime | None:
    match = _O_CLOCK.fullmatch(written)
    if match is None:
        return None
    hour, minute, second = (int(part or 0) for part in match.groups())
    today = now.replace(hour=hour, minute=minute, second=second, microsecond=0, tzinfo=None)
    moments = [moment for days in (0, 1) for moment in _shown(today + timedelta(days=days))]
    return next(moment for moment in moments if moment > now)


def _shown(local: datetime) -> list[datetime]:
    """The moments at which the clock on the wall shows ``local``: two in the night it is set back.

    In the night it is set forward it may show it never; then the moment it would have been.
    """
    # by way of the timestamp: for a time that is skipped, astimezone alone goes the wrong way
    seconds = [local.replace(fold=fold).timestamp() for fold in (0, 1)]
    moments = [datetime.fromtimestamp(second, timezone.utc).astimezone() for second in seconds]
    shown = [moment for moment in moments if moment.replace(tzinfo=None) == local]
    return shown or moments[:1]


def _date_and_time(written: str, now: datetime) -> datetime | None:
    match = _DATE_AND_TIME.fullmatch(written)
    if match is None:
        return None
    date, hour, rest, zone = match.groups(default="")
    moment = datetime.fromisoformat(f"{date}T{hour:0>2}{rest}{zone.replace('Z', '+00:00')}")
    if moment.tzinfo is not None:
        return moment.astimezone()
    moments = _shown(moment)
    return next((moment for moment in moments if moment > now), moments[-1])
