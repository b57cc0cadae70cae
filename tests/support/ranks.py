"""Runs ``cpulm`` in the processes of one run, as a launcher would start them: forks, in milliseconds."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from forked import Forked


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ranks(
    folder: Path, size: int, *arguments: str, each: Sequence[Mapping[str, str]] = (), **environ: str
) -> list[subprocess.CompletedProcess[str]]:
    """``cpulm ARGUMENTS`` as a run of ``size`` processes; ``each`` has more of one's environment."""
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    with tempfile.TemporaryDirectory() as kept:
        started = []
        for rank, own in enumerate([*each, *[{}] * (size - len(each))]):
            out, err = Path(kept, f"out{rank}"), Path(kept, f"err{rank}")
            mine = {**environ, "RANK": str(rank), "LOCAL_RANK": str(rank), **own}
            started.append((Forked(folder, *arguments, stdout=out, stderr=err, environ=mine), out, err))
        return [
            subprocess.CompletedProcess(
                arguments, process.wait(), out.read_text("utf-8"), err.read_text("utf-8")
            )
            for process, out, err in started
        ]
