"""Runs commands where streams, files, folders, signals and limits are not as usual; none may end as a bug.

Each case draws a command, its input and up to three hindrances: pipes and FIFOs, files that grow or shrink,
closed, full and deserted streams, folders that cannot be entered, links and FIFOs in a run's folder,
inherited signals, limits, and modules of the user's in the working folder. It runs in a fork of a process
that has cpulm loaded (with shadowing modules in a new process), and must end with one of cpulm's exit codes,
without a traceback, in time; text that was read must be whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import cpulm
from benchmarks.soak import small
from benchmarks.soak.counted import counted
from benchmarks.soak.odd import HINDRANCES, REPLACEMENTS, TEXTS, Case, remove
from cpulm import exit_codes
from cpulm.cli import main as command_line
from cpulm.command import cpulm_command
from cpulm.run_dir import RunDir

ALLOWED = set(exit_codes.EXIT_CODES) - {exit_codes.BUG}
SECONDS = 120
"""A case that takes longer hangs: most do a fraction of a second's work; without a cache that can be written,
the kernels are compiled first."""
WAITS_FOR_SPACE = "trying again for"
"""What a run says that waits a minute for space on a full disk."""
BUG_DESCRIPTOR = 100
"""Where the process of a case writes what ended it, whatever its streams are."""
TINY = [
    "--set=log.report=false",  # drawing the page takes seconds
    *(f"--set={each}" for each in small.SMALL if not each.startswith(("train.steps", "checkpoint"))),
]


class World:
    """A text and a run that every case gets a copy of."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        for module in pkgutil.walk_packages(cpulm.__path__, "cpulm."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        small.own_cache(folder / "cache")
        self.folder = folder
        self.text = small.write_text(folder)
        self.run = folder / "run"
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                small.train(small.settings_for(self.text, "train.steps=2", "log.report=false"), self.run)
                os._exit(0)
            os._exit(1)
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("the run that all cases copy was not trained")
        gc.freeze()  # else every fork would write to all of this memory as it collects garbage

    def case(self, draw: random.Random, number: int) -> Case:
        """Draw a case; its folder exists."""
        case = Case(self.folder / f"case{number}")
        case.folder.mkdir()
        draw.choice([self._with_text, self._with_run])(draw, case)
        for hinder in draw.sample(HINDRANCES, draw.choice([0, 1, 1, 2, 3])):
            hinder(draw, case)
        return case

    def _with_text(self, draw: random.Random, case: Case) -> None:
        name = draw.choice(
            ["notes.txt", "-x", "two words.txt", "new\nline.txt", "\x1b[31mred.txt", "\udcff.txt"]
        )
        path = case.folder / name
        shutil.copy(self.text, path)
        place = f"./{name}" if name.startswith("-") else name
        case.tokens = path.stat().st_size + 2  # of two splits, each with an end of text
        source = draw.choice(TEXTS)(draw, case, path) or place
        command = draw.choice([*["tokenize"] * 10, "evaluate", "train"])
        if command == "tokenize":
            kind = draw.choice(["byte", "byte", "char", "bpe", "word"])
            case.arguments = [
                "tokenize",
                source,
                f"--out={draw.choice(['out', '-o', 'a/b'])}",
                f"--tokenizer={kind}",
            ]
            case.arguments += ["--vocab-size=300"] if kind == "bpe" else []
            case.arguments += draw.choice([[], ["--json"]])
            case.tokens = case.tokens if kind == "byte" else None
        elif command == "train":
            case.arguments = ["train", source, *TINY, "--steps=1", f"--out={draw.choice(['out', '-o'])}"]
            how = draw.choice([["--dry-run"], ["--dry-run", "--json"], ["--print-config"]])
            case.arguments += draw.choice([[], ["--headless"], ["--json"]]) if draw.random() < 0.1 else how
            case.tokens = None
        else:
            shutil.copytree(self.run, case.folder / "run")
            case.arguments = ["evaluate", "run", "--data", source]
            case.tokens = None

    def _with_run(self, draw: random.Random, case: Case) -> None:
        name = draw.choice(["run", "run", "-r", "a run", "\x1b]0;t\x07", "new\nline"])
        run = RunDir(case.folder / name)
        shutil.copytree(self.run, run.path)
        place = f"./{name}" if name.startswith("-") else name
        for _ in range(draw.choice([0, 1, 1, 2])):
            draw.choice(REPLACEMENTS)(draw, case, run)
        if draw.random() < 0.005:  # the page's pictures take seconds
            case.arguments = ["analyze", place, f"--html={draw.choice(['-p.html', 'page.html'])}"]
            return
        case.arguments = draw.choice(
            [
                *[["runs"], ["stop", place], ["watch", place, "--headless"], ["at-boot", place]] * 2,
                ["runs", "."],
                ["runs", "--json"],
                ["analyze", place],
                ["analyze", place, "--json"],
                ["watch", place, "--headless"],
                ["watch", place, "--replay"],
                ["stop", place],
                ["stop", place, "--json"],
                ["generate", place, "--max-new-tokens=2"],
                ["generate", place, "--prompt-file=-", "--max-new-tokens=2"],
                ["resume", place, "--steps=2"],
                ["resume", place, f"--steps={3 if draw.random() < 0.05 else 1}"],
                ["summary", place],
                ["at-boot", place],
            ]
        )


def run_case(case: Case) -> str:
    """Run it; return what is wrong, or nothing."""
    output = [case.folder.parent / f"{case.folder.name}.{name}" for name in ("out", "err", "bug")]
    pid = os.fork()
    if not pid:
        _become(case, output)
    code = _wait(pid)
    for helper in case.helpers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)
    if case.stdin is not None:
        os.close(case.stdin)
    told, said, bug = (path.read_bytes().decode("utf-8", "replace") for path in output)
    for path in output:
        path.unlink()
    return _fault(case, code, told, said + bug)


def _fault(case: Case, code: int | None, told: str, said: str) -> str:
    if code is None:
        return "" if WAITS_FOR_SPACE in said else f"hangs: {said[-300:]}"
    if "Traceback" in said or code not in ALLOWED:
        return f"exit code {code}: {said[-1500:]}"
    precious = case.folder / "precious.txt"
    case.folder.chmod(0o755)
    if (case.folder / "shadowed").exists() or "shadowed" in told + said:
        return f"ran a module of the working folder: {said[-300:]}"
    if precious.exists() and precious.read_text() != "precious":
        return f"wrote through a link: {said[-300:]}"
    if "\x1b" in said and "FORCE_COLOR=1" not in case.odd:
        return f"an escape sequence reached stderr: {said[-300:]!r}"
    if code == 0 and case.tokens is not None:
        sizes = [path.stat().st_size // 2 for path in case.folder.rglob("*.bin")]
        if sum(sizes) != case.tokens:
            return f"{sum(sizes)} tokens, not {case.tokens}"
    return ""


def _become(case: Case, output: list[Path]) -> None:
    """Turn this process into the case's command; it does not return."""
    code = 1
    try:
        os.setsid()
        os.chdir(case.folder)
        null = os.open(os.devnull, os.O_RDONLY)
        files = [os.open(path, os.O_WRONLY | os.O_CREAT, 0o666) for path in output]
        os.dup2(files[2], BUG_DESCRIPTOR)
        for number, place in enumerate([null if case.stdin is None else case.stdin, *files[:2]]):
            os.dup2(place, number)
        os.closerange(3, BUG_DESCRIPTOR)
        _obey_modes()
        for change in case.before:
            change()
        if case.fresh:
            command = cpulm_command(*case.arguments)
            os.execv(command[0], command)
        _reopen()
        sys.argv = ["cpulm", *case.arguments]
        command_line.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException as error:
        with contextlib.suppress(Exception):
            os.write(BUG_DESCRIPTOR, f"{error!r}\n{traceback.format_exc()}".encode("utf-8", "replace"))
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(code & 0xFF)


def _obey_modes() -> None:
    """Give up what lets root pass the modes of files; a program that is started gets none of it back."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def _reopen() -> None:
    """Python's streams as a new process has them; None for a closed one."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
            errors = "strict" if number == 1 else "backslashreplace"
            stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        except OSError:
            stream = None
        setattr(sys, name, stream)


def _wait(pid: int) -> int | None:
    """The exit code, negative for a signal; None if it had to be ended.

    What counts is the time in which this process runs too: both may be suspended, or a machine is busy.
    """
    waited, now = 0.0, time.monotonic()
    while waited < SECONDS:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
        before, now = now, time.monotonic()
        waited += min(0.02, now - before)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def places(count: int, seed: int, first: int = 0) -> dict[str, Any]:
    """Run ``count`` cases from number ``first`` on, or those before Ctrl-C; return how they ended."""
    if sys.platform != "linux" or os.geteuid():
        sys.exit("this trial takes Linux and root; it gives up its rights where a folder is to be closed")
    commands: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    slowest = (0.0, first)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        world = World(Path(name))
        for number in counted("places", count, first):
            case = world.case(random.Random(f"{seed} {number}"), number)
            case_began = time.monotonic()
            fault = run_case(case)
            slowest = max(slowest, (round(time.monotonic() - case_began, 1), number))
            commands[case.arguments[0]] += 1
            if fault:
                faults.append({"number": number, "command": case.arguments, "odd": case.odd, "fault": fault})
                print(f"{number} {case.arguments} {case.odd}\n{fault}\n", file=sys.stderr, flush=True)
            remove(case.folder)
    return {
        "cases": commands.total(),
        "first": first,
        "seconds": round(time.monotonic() - began, 1),
        "slowest": {"seconds": slowest[0], "number": slowest[1]},
        "commands": dict(commands),
        "faults": faults,
    }


def told(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    done, slowest = result["cases"], result["slowest"]
    lines = [
        f"{done:,} cases in {result['seconds']:,.0f} s, {len(result['faults'])} faults; case "
        f"{slowest['number']} took longest, {slowest['seconds']:.0f} s",
        f"  to go on: --first {result['first'] + done}",
    ]
    lines += [f"  {name:<10} {number:>6,}" for name, number in sorted(result["commands"].items())]
    for row in result["faults"]:
        lines += ["", f"case {row['number']}: {row['command']}, {'; '.join(row['odd'])}", f"  {row['fault']}"]
    return lines
