"""What can be odd about a text, about the files of a run and about a process: one function each."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cpulm.run_dir import RunDir

SHADOWS = ("random", "select", "tokenize", "json", "typing", "torch", "numpy", "rich", "yaml", "cpulm")


@dataclass
class Case:
    """One command and what is odd about its world.

    Attributes:
        folder: of this case, which is the working folder and is deleted afterwards.
        arguments: of the command.
        odd: what is odd, in words.
        before: what the process does before the command.
        stdin: what the process reads; None for the null device.
        tokens: how many tokens of byte tokenizing are right if the command succeeds; None if not asked.
        fresh: whether it runs in a new process, where modules could be shadowed.
    """

    folder: Path
    arguments: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    before: list[Callable[[], object]] = field(default_factory=list)
    stdin: int | None = None
    tokens: int | None = None
    fresh: bool = False
    helpers: list[int] = field(default_factory=list)


# Texts: each may change the file or return another name for it.


def _plain(_draw: random.Random, _case: Case, _path: Path) -> None:
    return None


def _helper(case: Case, work: Callable[[], object]) -> None:
    """A process beside the command, which is ended after it."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)
    case.helpers.append(pid)


def _fifo(draw: random.Random, case: Case, path: Path) -> str | None:
    case.odd.append("FIFO")
    data = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    if draw.random() < 0.2:
        case.odd.append("whose writer ends at once")
        data, case.tokens = b"", None
    _helper(case, lambda: path.write_bytes(data))
    return None


def _stdin(draw: random.Random, case: Case, path: Path) -> str:
    case.odd.append("stdin")
    reader, writer = os.pipe()
    data = path.read_bytes()
    if draw.random() < 0.2:
        case.odd.append("cut within a character")
        data, case.tokens = data[:5000] + b"\xe6\x9d", None

    def work() -> None:
        os.close(reader)
        while rest := work_data[0]:
            work_data[0] = rest[os.write(writer, rest[:4096]) :]

    work_data = [data]
    _helper(case, work)
    os.close(writer)
    case.stdin = reader
    return draw.choice(["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])


def _grows(_draw: random.Random, case: Case, path: Path) -> None:
    case.odd.append("a file that grows")
    case.tokens = None

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
        with path.open("ab") as file:
            while True:
                file.write(b"another line that comes later\n" * 20)
                file.flush()

    _helper(case, work)


def _shrinks(_draw: random.Random, case: Case, path: Path) -> None:
    case.odd.append("a file that shrinks")
    case.tokens = None
    size = path.stat().st_size

    def work() -> None:
        for step in range(400):
            os.truncate(path, max(0, size - 40 * step))

    _helper(case, work)


def _jsonl(_draw: random.Random, case: Case, path: Path) -> str:
    case.odd.append("JSONL that grows")
    case.tokens = None
    lines = b'{"text": "the cat sat on the mat"}\n' * 300
    target = path.parent / "rows.jsonl"
    target.write_bytes(lines)
    _grows(_draw, case, target)
    return target.name


def _folder(draw: random.Random, case: Case, path: Path) -> str:
    """A folder with something odd beside the text."""
    place = case.folder / "texts"
    place.mkdir()
    shutil.move(path, place / "text.txt")
    case.tokens = None
    odd = draw.choice(
        ["a FIFO", "a loop of links", "a dangling link", "a socket", "a closed folder", "a closed file"]
    )
    case.odd.append(f"{odd} in a folder of texts")
    strange = place / "strange.txt"
    if odd == "a FIFO":
        os.mkfifo(strange)
    elif odd == "a loop of links":
        strange.symlink_to(strange)
        (place / "up").symlink_to(place, target_is_directory=True)
    elif odd == "a dangling link":
        strange.symlink_to("nowhere")
    elif odd == "a socket":
        _socket(strange)
    elif odd == "a closed folder":
        strange.mkdir(0o000)
    else:
        strange.write_text("closed")
        strange.chmod(0o000)
    return draw.choice(["texts", "texts/*", "texts/**", "."])


def _closed_folder(draw: random.Random, case: Case, path: Path) -> str:
    case.odd.append("below a folder that cannot be entered")
    place = case.folder / "closed"
    place.mkdir()
    shutil.move(path, place / "text.txt")
    place.chmod(draw.choice([0o000, 0o600]))
    case.tokens = None
    return draw.choice(["closed/text.txt", "closed", "closed/*.txt", "closed/missing.txt"])


def _link(_draw: random.Random, case: Case, path: Path) -> str:
    case.odd.append("a link to the text")
    (case.folder / "link.txt").symlink_to(path)
    return "link.txt"


def _device(draw: random.Random, case: Case, _path: Path) -> str:
    case.odd.append("a device or nothing")
    case.tokens = None
    return draw.choice(["/dev/null", "", "nowhere/x.txt", "/proc/self/mem", "run", "x" * 5000, "~x/y"])


TEXTS: list[Callable[[random.Random, Case, Path], str | None]] = [
    _plain, _plain, _fifo, _stdin, _stdin, _grows, _shrinks, _jsonl, _folder, _closed_folder, _link, _device,
]  # fmt: skip


# Files of a run that are other than they seem.


def _file_of(draw: random.Random, run: RunDir) -> Path:
    there = [
        *run.path.iterdir(),
        run.stop,
        run.overnight,
        run.lock,
        run.report,
        run.path / "step-00000001.pt",
    ]
    return draw.choice(sorted(set(there)))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _as_fifo(draw: random.Random, case: Case, run: RunDir) -> None:
    path = _file_of(draw, run)
    case.odd.append(f"{path.name} is a FIFO")
    remove(path)
    os.mkfifo(path)


def _as_folder(draw: random.Random, case: Case, run: RunDir) -> None:
    path = _file_of(draw, run)
    case.odd.append(f"{path.name} is a folder")
    remove(path)
    path.mkdir()


def _as_socket(draw: random.Random, case: Case, run: RunDir) -> None:
    path = _file_of(draw, run)
    case.odd.append(f"{path.name} is a socket")
    remove(path)
    _socket(path)


def _socket(path: Path) -> None:
    """A socket's file; its name may be too long, then there is none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def _as_link(draw: random.Random, case: Case, run: RunDir) -> None:
    path = _file_of(draw, run)
    target = draw.choice([path.name, "nowhere", "/dev/zero", "/dev/full", "../precious.txt", "."])
    case.odd.append(f"{path.name} is a link to {target}")
    (run.path.parent / "precious.txt").write_text("precious")
    remove(path)
    path.symlink_to(target)


def _closed(draw: random.Random, case: Case, run: RunDir) -> None:
    path = draw.choice([*run.path.iterdir(), run.path])
    case.odd.append(f"{path.name} cannot be read")
    if not path.is_symlink():
        path.chmod(0o000)


def _empty(draw: random.Random, case: Case, run: RunDir) -> None:
    path = _file_of(draw, run)
    case.odd.append(f"{path.name} is empty")
    if not path.exists() or path.is_file():
        remove(path)
        path.touch()


REPLACEMENTS = [_as_fifo, _as_folder, _as_socket, _as_link, _closed, _empty]


# Hindrances: what is odd about the process.


def _streams(draw: random.Random, case: Case) -> None:
    stream = draw.choice([0, 1, 2])
    how = draw.choice(
        ["closed", "a read-only file", "full", "deserted", "not blocking"][: 5 if stream else 2]
    )
    case.odd.append(f"stream {stream} {how}")

    def change() -> None:
        if how == "closed":
            with contextlib.suppress(OSError):  # a case may close it twice
                os.close(stream)
            return
        if how in ("deserted", "not blocking"):
            ends = os.pipe()
            reader, place = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends)
            for end in ends:  # one may have the number of a stream that is to be closed
                os.close(end)
            os.set_blocking(place, how == "deserted")
            if how == "deserted":
                os.close(reader)
            else:
                os.set_inheritable(reader, True)
        else:
            place = os.open(
                "/dev/full" if how == "full" else "/dev/null", os.O_RDONLY if "read" in how else os.O_WRONLY
            )
        os.dup2(place, stream)
        if place != stream:
            os.close(place)

    case.before.append(change)


def _signals(draw: random.Random, case: Case) -> None:
    names = draw.sample(
        ["SIGHUP", "SIGINT", "SIGTERM", "SIGPIPE", "SIGCHLD", "SIGALRM", "SIGUSR1", "SIGXFSZ"], 2
    )
    blocked = draw.random() < 0.3
    case.odd.append(f"{' and '.join(names)} {'blocked' if blocked else 'ignored'}")
    numbers = [getattr(signal, name) for name in names]
    if blocked:
        case.before.append(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, numbers))
    else:
        case.before.append(lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers])


def _limits(draw: random.Random, case: Case) -> None:
    what, most = draw.choice(
        [
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_FSIZE, 3000),
            (resource.RLIMIT_NOFILE, 24),
            (resource.RLIMIT_CORE, 0),
        ]
    )
    case.odd.append(f"limit {what} of {most}")
    case.tokens = None
    case.before.append(lambda: resource.setrlimit(what, (most, most)))


def _environment(draw: random.Random, case: Case) -> None:
    name, value = draw.choice(
        [
            ("HOME", None), ("HOME", "/nowhere"), ("HOME", ""), ("TMPDIR", "/nowhere"), ("TMPDIR", "/proc"),
            ("CPULM_CACHE", "/proc/x"), ("CPULM_CACHE", ""), ("LC_ALL", "C"), ("COLUMNS", "0"),
            ("COLUMNS", "-5"), ("COLUMNS", "wide"), ("COLUMNS", "3"), ("TERM", "dumb"), ("PATH", ""),
            ("FORCE_COLOR", "1"), ("OMP_NUM_THREADS", "x"), ("PYTHONIOENCODING", "ascii"),
            ("XDG_CACHE_HOME", "/dev/null"),
        ]
    )  # fmt: skip
    case.odd.append(f"{name}={value}")

    def change() -> None:
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value

    case.before.append(change)


def _closed_working_folder(draw: random.Random, case: Case) -> None:
    how = draw.choice(["deleted", "read-only", "closed"])
    case.odd.append(f"the working folder is {how}")
    case.tokens = None

    def change() -> None:
        if how == "deleted":
            gone = Path(tempfile.mkdtemp(dir="/tmp"))
            os.chdir(gone)
            gone.rmdir()
        else:
            case.folder.chmod(0o555 if how == "read-only" else 0o000)

    case.before.append(change)


def _shadows(draw: random.Random, case: Case) -> None:
    if case.arguments[0] not in ("runs", "stop", "summary", "at-boot") or draw.random() < 0.6:
        return  # the others load torch, which takes a new process seconds
    names = draw.sample(SHADOWS, 3)
    case.odd.append(f"modules in the working folder: {', '.join(names)}")
    for name in names:
        (case.folder / f"{name}.py").write_text("open('shadowed', 'w'); raise SystemExit('shadowed')\n")
    case.fresh = True


HINDRANCES: list[Callable[[random.Random, Case], None]] = [
    _streams, _streams, _signals, _limits, _environment, _closed_working_folder, _shadows,
]  # fmt: skip
