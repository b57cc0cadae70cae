"""Runs ``cpulm`` in the test's own process, or in a new one, which takes 2 s to load torch."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpulm.cli.main import main


def cpulm(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``cpulm ARGUMENTS`` in ``folder``, with nothing to read, and give its end as that of a process.

    An error that cpulm does not foresee is raised here.
    """
    stdin, stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["cpulm", *arguments])
        for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    code = code if isinstance(code, int) else 0
    return subprocess.CompletedProcess(arguments, code, _written(stdout), _written(stderr))


def cpulm_in_a_process(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As :func:`cpulm`, in a process of its own: for tests of what only a process shows."""
    return subprocess.run(
        [sys.executable, "-m", "cpulm", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()
