"""The settings of a run over several processes and hosts."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cpulm.settings.setting_types import Section

Compression = Literal["none", "bf16", "int8", "int2"]

_MOST = 4096
"""The most processes on a machine, machines, and restarts."""
_HIGHEST_PORT = 65535


class DistributedSettings(Section):
    """Training over several processes and hosts, which share every update."""

    processes: int = Field(1, ge=1, le=_MOST)
    """Processes on this machine; they share its cores and its memory."""
    nodes: str = "1"
    """How many machines train the run: `2`, or `1:4` to begin with one and take up to three more that join
    later. The same command is given on each."""
    rendezvous: str = ""
    """Where the machines meet, `HOST:PORT`: the name or the address of one of them, which must stay, and a
    free port. The first of them to have the run's folder, or else this one, writes and shows the run."""
    run_id: str = "cpulm"
    """Any word that the machines of one run have in common, and other runs at the same place do not."""
    max_restarts: int = Field(10, ge=0, le=_MOST)
    """How often the processes are started again from the last checkpoint if one of them is lost; a machine
    that joins does not count."""
    mode: Literal["sync", "diloco"] = "sync"
    """`sync` sums the gradients of every update; `diloco` averages the changes of the weights after every
    `train.outer_steps` updates, for slow networks and unequal machines."""
    share: Literal["equal", "speed"] = "equal"
    """How `diloco` divides the rows of an update: equally, or by the speeds of the processes in the round
    before. By speed, a resumed run is exact in its data and close in its numbers."""
    compression: Compression | None = None
    """How gradients or changes of the weights are sent: as they are, or in 16, 8 or 2 bits each; `int2` is
    for `diloco` alone. Unset: `int2` for `diloco`, `int8` for runs that train in int8, else `none`."""

    @field_validator("nodes", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @field_validator("nodes")
    @classmethod
    def _is_a_range(cls, value: str) -> str:
        match = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", value)
        if not match or not 1 <= int(match[1]) <= int(match[2] or match[1]) <= _MOST:
            raise ValueError("must be a number of machines, such as 2, or a range, such as 1:4")
        return value

    @field_validator("rendezvous")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        match = re.fullmatch(r"(?:[^\s:]+|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?", value)
        if value and (match is None or not 1 <= int(match[1] or 1) <= _HIGHEST_PORT):
            raise ValueError("must be HOST:PORT with a port of 1 to 65535, such as 192.168.1.5:29400")
        return value

    @model_validator(mode="after")
    def _keeps_what_rounding_lost(self) -> DistributedSettings:
        if self.compression == "int2" and self.mode == "sync":
            raise ValueError(
                "compression int2 needs mode diloco, which sends later what rounding lost: "
                "set mode to diloco, or compression to int8"
            )
        return self

    def sent_as(self, precision: str) -> Compression:
        """The compression of a run that trains in ``precision``, also where it is not set."""
        if self.compression is not None:
            return self.compression
        if self.mode == "diloco":
            return "int2"
        return "int8" if precision == "int8" else "none"

    @property
    def node_range(self) -> tuple[int, int]:
        """The fewest and the most machines."""
        fewest, _, most = self.nodes.partition(":")
        return int(fewest), int(most or fewest)

    @property
    def needs_launcher(self) -> bool:
        """Whether the run has, or may come to have, more than one process."""
        return self.processes > 1 or self.node_range[1] > 1
