"""Makes the project's own environment: ``.venv`` with the package and the CPU build of torch.

Needs nothing but Python. What is there already is used: a stamp in ``.venv`` holds a digest of all that
decides what gets installed, is taken away before an installation and written after it, so that an
installation that was broken off, or that other files asked for, is done again.

Run alone (``python scripts/environment.py --extra test``) it prints the path of the environment's Python.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 14)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = {
    "": "about 240 MB to download, 1.1 GB on the disk, 1 to 3 minutes",
    "test": "about 300 MB to download, 1.4 GB on the disk, 1 to 4 minutes",
}


def prepare(extra: str = "", root: Path = ROOT) -> Path:
    """The Python of ``root``'s environment, with the package and ``extra`` installed.

    Raises:
        SystemExit: with a message, where that cannot be done.
    """
    venv = root / ".venv"
    python = program(venv, "python")
    wanted = digest(root)
    if python.exists() and is_stamped(venv, extra, wanted):
        return python
    try:
        _make_venv(venv, python)
        _say(f"installing cpulm and the CPU build of torch into {venv} ({EXTRAS[extra]})")
        started = time.monotonic()
        for name in EXTRAS:
            _stamp(venv, name).unlink(missing_ok=True)
        _install(root, python, extra)
    except KeyboardInterrupt:
        _say("broken off; run this again to install the rest")
        raise SystemExit(130) from None
    for name in ("", extra):
        _stamp(venv, name).write_text(wanted, encoding="utf-8")
    _say(f"installed in {time.monotonic() - started:.0f} seconds; the next time this is skipped")
    _warn_of_cuda(venv)
    return python


def program(venv: Path, name: str) -> Path:
    """A program inside an environment."""
    return venv / "Scripts" / f"{name}.exe" if os.name == "nt" else venv / "bin" / name


def digest(root: Path) -> str:
    """What an installation follows from: the two files, and the place, which an editable one points to."""
    parts = [(root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    parts.append(f"{root}".encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_stamped(venv: Path, extra: str, wanted: str) -> bool:
    """Whether an installation with ``extra`` was finished and followed from the same files."""
    stamp = _stamp(venv, extra)
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted


def cuda_of(version_file: str) -> str | None:
    """The CUDA version in the text of torch's ``version.py``; None for a CPU build."""
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)", version_file, re.MULTILINE)
    return match.group(1) if match else None


def _stamp(venv: Path, extra: str) -> Path:
    return venv / f"cpulm-installed{'-' if extra else ''}{extra}"


def _make_venv(venv: Path, python: Path) -> None:
    """Make the environment where there is none that works."""
    version = _version_of(python)
    if version is None:
        _require_own_python()
        _say(f"making {venv} with Python {sys.version.split()[0]}")
        made = subprocess.run([sys.executable, "-I", "-m", "venv", "--clear", str(venv)], check=False)
        if made.returncode:
            _fail(f"Python could not make {venv}", "see what it says above")
    elif not OLDEST <= version <= NEWEST:
        _fail(
            f"{venv} is of Python {version[0]}.{version[1]}, and cpulm needs {_range()}",
            f"remove the folder {venv} and run this again",
        )
    elif subprocess.run(
        [python, "-I", "-c", "import pip"], stderr=subprocess.DEVNULL, check=False
    ).returncode:
        subprocess.run([python, "-I", "-m", "ensurepip"], stdout=subprocess.DEVNULL, check=True)


def _version_of(python: Path) -> tuple[int, int] | None:
    """Version of an interpreter; None where it is missing or does not run."""
    try:
        answer = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        major, minor = answer.stdout.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return int(major), int(minor)


def _require_own_python() -> None:
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        _fail(f"this is Python {version[0]}.{version[1]}, and cpulm needs {_range()}", "install one of them")
    if sys.platform == "darwin" and os.uname().machine == "x86_64":
        _fail("PyTorch has no builds for Macs with Intel processors any more", "use another computer")
    if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
        _fail(
            f"this Python ({sys.executable}) lacks its venv module",
            f"on Debian and Ubuntu: sudo apt install python{version[0]}.{version[1]}-venv",
        )


def _install(root: Path, python: Path, extra: str) -> None:
    command = [str(python), "-I", "-m", "pip", "install", "--no-input", "--prefer-binary"]
    command += ["--disable-pip-version-check", "--constraint", str(root / "constraints.txt")]
    index_answers = sys.platform == "linux" and _answers(f"{CPU_INDEX}/torch/")
    if index_answers:
        command += ["--extra-index-url", CPU_INDEX]
    if extra:
        command.append("--no-compile")  # of 12,000 modules the tests import a tenth: Python compiles those
    command += ["--editable", f"{root}[{extra}]" if extra else str(root)]
    log = root / ".venv" / "cpulm-install.log"
    code, tail = _run(command, log)
    if code == 0:
        return
    print("\n".join(tail), file=sys.stderr)
    if sys.platform == "linux" and not index_answers:
        _fail(
            f"the installation failed, and PyTorch's index of CPU builds ({CPU_INDEX}) did not answer",
            "try again when it can be reached, or name a place with that wheel in PIP_FIND_LINKS",
        )
    _fail("the installation failed", f"see what pip says above, or all of it in {log}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3):
            return True
    except urllib.error.HTTPError:  # an answer all the same; pip asks for it in its own way
        return True
    except OSError:
        return False


def _run(command: list[str], log: Path) -> tuple[int, list[str]]:
    """Run pip with its output in ``log``, showing what it is at; its exit code and its last lines."""
    lines: list[str] = []
    environment = {**os.environ, "PIP_USER": "0", "PYTHONUNBUFFERED": "1"}
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as pip,
    ):

        def follow() -> None:
            for line in pip.stdout or ():
                file.write(line)
                lines.append(line.rstrip())

        reader = threading.Thread(target=follow)
        reader.start()
        _show_until_done(reader, lines)
    return pip.returncode, lines[-12:]


def _show_until_done(reader: threading.Thread, lines: list[str]) -> None:
    """On a terminal one line that changes each second; elsewhere a line each half minute."""
    terminal = sys.stderr.isatty()
    started = time.monotonic()
    while reader.is_alive():
        reader.join(1 if terminal else 30)
        if not reader.is_alive():
            break
        doing = next((line.strip() for line in reversed(lines) if not line.startswith("WARNING")), "")
        text = f"{time.monotonic() - started:4.0f} s  {doing}"
        start, end = ("\r\033[K", "") if terminal else ("", "\n")
        print(f"{start}{text[:78]}", end=end, file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _warn_of_cuda(venv: Path) -> None:
    packages = venv / "Lib" if os.name == "nt" else next(venv.glob("lib/python*"))
    version_file = packages / "site-packages" / "torch" / "version.py"
    cuda = cuda_of(version_file.read_text(encoding="utf-8"))
    if cuda:
        _say(
            f"warning: this torch is a build for CUDA {cuda}, gigabytes larger than the CPU build, because "
            f"pip's configuration asks for it. Mend that (pip config list), remove {venv}, run this again"
        )


def _range() -> str:
    return f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"


def _say(text: str) -> None:
    print(f"cpulm: {text}", file=sys.stderr, flush=True)


def _fail(message: str, hint: str) -> NoReturn:
    raise SystemExit(f"error: {message}\nhint: {hint}")


def main() -> None:
    """Prepare the environment and print the path of its Python."""
    parser = argparse.ArgumentParser(description="Make the project's environment.")
    parser.add_argument("--extra", choices=sorted(EXTRAS), default="", help="also install this extra")
    print(prepare(parser.parse_args().extra))


if __name__ == "__main__":
    main()
