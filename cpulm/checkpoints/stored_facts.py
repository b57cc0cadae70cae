"""What a checkpoint says of the machine that it was trained on, and of its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cpulm.typed_json import shown

_LONGEST_FACT = 4096
"""Characters; all instruction sets of a CPU have a few hundred."""


@dataclass
class StoredRuntime:
    """The values under ``runtime``. The defaults stand for a checkpoint that no run wrote; None stands for a
    value that an earlier version did not record."""

    device: str = ""
    device_name: str | None = None
    threads: int = 1
    processes: int = 1
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    precision_reason: str = ""
    compiled: bool = False
    kernels: bool = False
    cpulm: str | None = None
    torch: str | None = None
    cpu_capability: str | None = None
    instruction_sets: str | None = None
    kernels_compiler: str | None = None
    kernels_key: str | None = None
    math_variables: str | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str) and len(value) > _LONGEST_FACT:
                raise ValueError(f"{name} cannot be {shown(value)}")


@dataclass
class StoredData:
    """The values under ``data``; empty for a checkpoint that no run wrote."""

    path: str = ""
    digest: str = ""
    columns: dict[str, dict[str, int]] = field(default_factory=dict)
