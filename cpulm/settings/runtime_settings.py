"""The settings of how the machine is used."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cpulm.settings.setting_types import LARGEST, Section

Device = Literal["auto", "cpu", "cuda", "mps"]


class RuntimeSettings(Section):
    """How the machine is used."""

    device: Device = "auto"
    """`auto` takes cuda, then mps, then cpu."""
    threads: int | None = Field(None, ge=1, le=LARGEST)
    """CPU threads; unset: OMP_NUM_THREADS, else one for each physical core that this process may use, without
    slow cores that would hold up the fast ones."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Precision of the matrix products; `auto` takes the fastest that the device has instructions for. With
    int8 the rows and columns of linear layers, head and Muon are rounded to 8 bits; weights, sums, attention
    and validation stay in fp32."""
    kernels: Literal["auto", "off"] = "auto"
    """Compiled kernels: the wheel's, or compiled once if there is a C++ compiler."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; `auto` uses it for a long run if neither int8 nor the kernels, which are faster, are
    used."""
    nice: bool = False
    """Give this process a low priority."""
    allow_sleep: bool = False
    """Let the machine go to sleep while it trains."""
    pause_on_battery: bool = False
    """Wait while the machine runs on battery, and continue on mains."""
