"""Warns of a run on battery, and waits for mains power."""

from __future__ import annotations

import time
from collections.abc import Callable

from cpulm.system.host import Power, read_power
from cpulm.system.run_clock import RunClock
from cpulm.units import format_duration

_POLL_SECONDS = 0.5
"""Time between two checks for a stop request while waiting."""


def battery_warning() -> str | None:
    """Return the warning for a run that begins on battery; None on mains or if the source is unknown."""
    power = read_power()
    if power.source != "battery":
        return None
    left = "" if power.battery_percent is None else f" ({power.battery_percent:.0f}% left)"
    return (
        f"running on battery{left}: it will be empty long before a night's work is done, and many"
        " machines slow down or sleep on battery; plug in, or use --pause-on-battery"
    )


class BatteryWatch:
    """Tells whether a run with ``--pause-on-battery`` should pause now.

    Args:
        read: reads the power source; an unknown source counts as mains.
        every_seconds: how long a reading stays valid.
        monotonic: the clock for it.
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
        """Whether the machine runs on battery; the reading is at most ``every_seconds`` old."""
        now = self._monotonic()
        if self._read_at is None or now - self._read_at >= self._every_seconds:
            self._read_at, self._power = now, self._read()
        return self._power.source == "battery"

    def wait_for_mains(
        self, should_stop: Callable[[], bool], tell: Callable[[str], None], clock: RunClock
    ) -> None:
        """Return immediately on mains; else wait until mains power is back or ``should_stop()`` is True.

        ``clock`` is paused meanwhile. ``tell`` is called at the beginning and at the end.
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
            tell(f"plugged in again: training continues after {format_duration(self._monotonic() - began)}")
