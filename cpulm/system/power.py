"""Mains or battery: asking, warning, and waiting for the mains."""

from __future__ import annotations

import time
from collections.abc import Callable

from cpulm.system.host import Power, read_power
from cpulm.system.run_clock import RunClock
from cpulm.units import format_duration

_POLL_SECONDS = 0.5
"""Between two looks, while waiting, at whether the run is to stop."""


def on_battery() -> bool | None:
    """Whether the machine runs on battery now; None where it does not tell."""
    return {"mains": False, "battery": True}.get(read_power().source)


def battery_warning() -> str | None:
    """What to tell a user whose run begins on battery; None on mains, or where it is not known."""
    power = read_power()
    if power.source != "battery":
        return None
    left = "" if power.battery_percent is None else f" ({power.battery_percent:.0f}% left)"
    return (
        f"running on battery{left}: it will be empty long before a night's work is done, and many"
        " machines are slower or go to sleep on it; plug in, or use --pause-on-battery"
    )


class BatteryWatch:
    """Says whether a run that is to pause on battery should pause now.

    Args:
        read: asks the system where its power comes from; where it does not know, that is the mains.
        every_seconds: how long an answer is good for.
        monotonic: a clock for that.
    """

    def __init__(
        self,
        read: Callable[[], Power] = read_power,
        every_seconds: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._every_seconds = every_seconds
        self._monotonic = monotonic
        self._read_at: float | None = None
        self._power = Power("unknown")

    def paused(self) -> bool:
        """Whether the machine runs on battery, as of at most ``every_seconds`` ago."""
        now = self._monotonic()
        if self._read_at is None or now - self._read_at >= self._every_seconds:
            self._read_at, self._power = now, self._read()
        return self._power.source == "battery"

    def wait_for_mains(
        self, should_stop: Callable[[], bool], tell: Callable[[str], None], clock: RunClock
    ) -> None:
        """Return at once on mains; else when the mains are back, or ``should_stop()``.

        The time is no run time: ``clock`` stands still. ``tell`` hears of the beginning and of the end.
        """
        if not self.paused() or should_stop():
            return
        began = self._monotonic()
        left = "" if self._power.battery_percent is None else f" ({self._power.battery_percent:.0f}% left)"
        tell(f"on battery{left}: training pauses until the machine is plugged in")
        with clock.pause():
            while self.paused() and not should_stop():
                time.sleep(_POLL_SECONDS)
        if not self.paused():
            tell(f"plugged in again: training goes on after {format_duration(self._monotonic() - began)}")
