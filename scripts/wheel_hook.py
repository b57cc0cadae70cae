"""Hatch's hook for platform wheels: adds the compiled kernels that ``build_wheels.py`` made, sets the tag."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "CPULM_WHEEL"
"""The folder of a platform's libraries, named as the platform's tag. Unset: the wheel for all platforms."""


class KernelsHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        folder = os.environ.get(VARIABLE)
        if folder is None:
            return
        # The interface of the kernels is plain C, so one wheel serves every version of Python and torch.
        build_data["tag"] = f"py3-none-{Path(folder).name}"
        build_data["pure_python"] = False
        for library in sorted(Path(folder).iterdir()):
            build_data["force_include"][str(library)] = f"cpulm/native/libraries/{library.name}"
