"""scripts/slurm.sbatch with programs in place of Slurm's: what it starts, and when a job is queued again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Slurm is of Linux")
SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sbatch"
PROGRAMS = {
    # Moves `saves` into the run's folder when it gets SIGTERM, and ends with the code of the file `code`.
    "srun": 'echo "$SRUN_CPUS_PER_TASK" "$@" > started; echo $$ > pid; '
    "trap 'mv saves/* runs/slurm-7 2> /dev/null; exit \"$(cat code)\"' TERM; while :; do sleep 0.02; done",
    "scancel": 'echo "$@" > cancelled; kill -TERM "$(cat pid)"',
    "scontrol": 'if [ "$1" = show ]; then echo alpha; echo beta; else echo "$@" > queued; fi',
}


@pytest.fixture
def job(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A job on two nodes whose launchers have been started."""
    for folder in ("bin", "saves", "runs/slurm-7"):
        (tmp_path / folder).mkdir(parents=True)
    for name, body in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o700)
    environ = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "", "SLURM_CPUS_PER_TASK": "8"}
    environ |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "my notes/"], cwd=tmp_path, env={**os.environ, **environ}
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_each_node_gets_its_cores_and_where_to_meet(tmp_path: Path, job: subprocess.Popen[bytes]) -> None:
    (tmp_path / "code").write_text("0")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert job.wait(60) == 0
    cores, *started = (tmp_path / "started").read_text().split()
    assert cores == "8"
    assert shlex.join(started).endswith(
        "cpulm train my notes/ --out runs/slurm-7 --resume --headless "
        "--nnodes 2 --rdzv-endpoint alpha:29407 --rdzv-id 7"
    )


@pytest.mark.parametrize(
    ("time_is_up", "saves", "code", "ends", "queued"),
    [
        (True, True, 75, 0, "requeue 7\n"),
        (True, False, 75, 75, ""),
        (True, True, 0, 0, ""),
        (True, False, 5, 5, ""),
        (False, True, 75, 75, ""),
    ],
    ids=["saved", "no time to train", "came to its end just then", "could not save", "stopped by the user"],
)
def test_only_a_job_whose_time_is_up_is_queued_again(
    tmp_path: Path,
    job: subprocess.Popen[bytes],
    time_is_up: bool,
    saves: bool,
    code: int,
    ends: int,
    queued: str,
) -> None:
    (tmp_path / "code").write_text(str(code))
    if saves:
        (tmp_path / "saves" / "latest.pt").touch()
    if time_is_up:
        job.send_signal(signal.SIGUSR1)
    else:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert job.wait(60) == ends
    assert time_is_up == (tmp_path / "cancelled").exists()
    again = tmp_path / "queued"
    assert (again.read_text() if again.exists() else "") == queued
