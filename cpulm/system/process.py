"""Identifies processes reliably: process ids alone are reused, also after a reboot."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from cpulm.system.small_file import read_small_file

_UNKNOWN = "unknown"


def is_running(pid: int, token: str) -> bool:
    """Whether the process identified by ``pid`` and ``token`` still runs; True if access is denied."""
    return start_token(pid) in (token, _UNKNOWN)


def start_token(pid: int) -> str | None:
    """Return a token that identifies the start of process ``pid``; it differs if the id was reused.

    None if there is no such process, or only its zombie.
    """
    if Path("/proc/self/stat").exists():
        return _start_token_linux(pid)
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError):
        return _UNKNOWN


def is_suspended(pid: int) -> bool:
    """Whether the process is stopped by SIGSTOP or Ctrl-Z; False if there is none or access is denied."""
    if Path("/proc/self/stat").exists():
        fields = _fields_linux(pid)
        return bool(fields) and fields[0] == b"T"
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except (psutil.Error, OSError):
        return False


def wake(pid: int) -> bool:
    """Continue a suspended process; False if the user may not, or the system has no such signal."""
    sigcont: int | None = getattr(signal, "SIGCONT", None)
    if sigcont is None:
        return False
    try:
        os.kill(pid, sigcont)
    except OSError:
        return False
    return True


def _start_token_linux(pid: int) -> str | None:
    """Return boot id and start tick; psutil's creation time would change when the clock is set."""
    fields = _fields_linux(pid)
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return f"{boot()} {fields[19].decode()}"


def _fields_linux(pid: int) -> list[bytes]:
    """Return the fields of ``/proc/PID/stat`` from the state on; empty if there is no such process."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    # The name is in parentheses and may contain anything, including parentheses and spaces.
    return line[line.rfind(b")") + 1 :].split()


def boot() -> str:
    """Return the id of this boot of the machine; empty if unknown.

    Containers on a machine share it.
    """
    return read_small_file(Path("/proc/sys/kernel/random/boot_id")).strip()


def pid_namespace() -> str:
    """Return the id of the PID namespace of this process; each container has its own."""
    try:
        return f"{boot()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return host_name()


def host_name() -> str:
    """Return the machine's host name."""
    return socket.gethostname()
