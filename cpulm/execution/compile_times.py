"""What compiling a step costs and gains on this machine, as measured and remembered."""

from __future__ import annotations

from dataclasses import dataclass

from cpulm.execution.measurement_cache import remembered_compiling

COMPILE_PAYS_AFTER_SECONDS = 1200.0
"""Where nothing was measured yet. Without the compiled kernels a cold compilation took 22 to 48 s at 10.7 M
parameters (2 cores, AVX-512, torch 2.13) and made a step a quarter faster, so a run has to be several times
longer than that before the gain is sure."""

SURE_GAIN = 2.0
"""How many times what compiling takes it has to save: the times of two days differ."""


@dataclass(frozen=True)
class CompileTimes:
    """What compiling one step cost on this machine, and what it gained; None where it was not measured.

    Attributes:
        cold: seconds with nothing in torch's cache.
        warm: seconds with all of it there.
        ratio: time of a compiled forward and backward pass over that of an eager one.
    """

    cold: float | None = None
    warm: float | None = None
    ratio: float | None = None

    @classmethod
    def remembered(cls, key: str) -> CompileTimes:
        """What was measured under ``key``."""
        numbers = remembered_compiling()
        return cls(*(numbers.find(f"{name}; {key}") for name in ("cold", "warm", "ratio")))

    def keep(self, key: str) -> None:
        """Remember what is known under ``key``."""
        for name in ("cold", "warm", "ratio"):
            value: float | None = getattr(self, name)
            if value is not None:
                remembered_compiling().keep(f"{name}; {key}", value)

    def decide(self, planned_seconds: float | None) -> tuple[bool, str]:
        """Whether a run of so many seconds gains by it, and why."""
        cost = self.cold if self.warm is None else self.warm
        if planned_seconds is None or cost is None or self.ratio is None:
            if planned_seconds is None or planned_seconds < COMPILE_PAYS_AFTER_SECONDS:
                return False, "the run is too short for compiling to pay"
            return True, "the run is long enough for it to pay"
        if self.ratio >= 1:
            return (
                False,
                f"as measured here earlier a compiled pass takes {self.ratio:.2f} of the eager one's time",
            )
        gain = planned_seconds * (1 - self.ratio)
        said = (
            f"as measured here earlier compiling takes {cost:.0f} s and would save {gain:.0f} s of this run"
        )
        return gain >= SURE_GAIN * cost, said


@dataclass(frozen=True)
class CompileTrial:
    """What is still to be measured of a step that is to be compiled.

    Attributes:
        key: under what its times are remembered.
        must_pay: whether the step stays eager where a compiled one is no faster.
    """

    key: str
    must_pay: bool
