"""Reads files with arbitrary contents: cpulm must never end with a traceback.

Each target takes what hypothesis makes up, bytes or a real record with parts of it changed, gives it to the
code that reads such a file, and lets nothing through but cpulm's own errors. The tests run some of each.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from benchmarks.soak import small
from cpulm.checkpoints import checkpoint as checkpoints
from cpulm.checkpoints.load_model import load_model
from cpulm.checkpoints.seal import seal
from cpulm.cli.until import parse_until
from cpulm.data.readers import read_chunks
from cpulm.data.reading import Reading
from cpulm.data.sources import find_files
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import CpulmError
from cpulm.events import Event, RunStarted, from_json
from cpulm.overnight import summary as night
from cpulm.run_dir import RunDir
from cpulm.runlog.tail import read_events
from cpulm.runlog.truncate import truncate_after
from cpulm.runs import lock, status, supervisor_state
from cpulm.settings.resolve_settings import resolve, validate
from cpulm.ui.console import stderr
from cpulm.ui.dashboard import render, render_summary
from cpulm.ui.replay import snapshot_of
from cpulm.units import parse_duration

_NUMBERS = st.one_of(
    st.integers(-5, 40),
    st.sampled_from([-(2**70), 2**31, 2**53, 10**18, 10**400, -0.0, 1e308, 1e-9]),
    st.floats(allow_subnormal=False),
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=4,
)


@dataclass(frozen=True)
class Target:
    """A generator of inputs, their reader, and the share of all cases."""

    cases: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    share: float


_SETTINGS = b"""# a run
model: {n_layer: 1, n_head: 2, n_embd: 16}
data:
  source: [notes, "log.txt"]
train:
  max_time: 8h
  lr: 3e-4
"""


class Enough(BaseException):
    """Ends a run once it has begun."""


class Sample:
    """A real log or the real bytes of a file, which hypothesis should not print."""

    def __init__(self, content: Any) -> None:
        self.content = content


def changed(record: Any) -> st.SearchStrategy[Any]:
    """A copy of nested dicts and lists with one to three parts replaced, removed or added."""
    return _changed(Sample(record))


def spoiled(content: bytes) -> st.SearchStrategy[bytes]:
    """Real content with some bytes replaced, removed or inserted, or arbitrary bytes."""
    return _spoiled(Sample(content))


@st.composite
def _changed(draw: st.DrawFn, sample: Sample) -> Any:
    record = copy.deepcopy(sample.content)
    for _ in range(draw(st.integers(1, 3))):
        paths = _paths(record)
        *way, last = draw(st.sampled_from(paths))
        inside = record
        for key in way:
            inside = inside[key]
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "replace":
            inside[last] = draw(_VALUES)
        elif what == "remove":
            del inside[last]
        elif isinstance(inside, dict):
            inside[draw(st.text(max_size=6))] = draw(_VALUES)
        if not record:
            break
    return record


def _paths(record: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(record, dict):
        items = list(record.items())
    elif isinstance(record, list):
        items = list(enumerate(record[:4]))
    return [path for key, value in items for path in ((*way, key), *_paths(value, (*way, key)))]


@st.composite
def _spoiled(draw: st.DrawFn, sample: Sample) -> bytes:
    content: bytes = sample.content
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 6))
        content = content[:at] + draw(st.binary(max_size=6)) + content[at + length :]
    return content


def as_json(record: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """The record as one line of JSON."""
    return record.map(lambda value: json.dumps(value).encode() + b"\n")


class World:
    """One small run, the files it left, and the targets that read changed copies of them."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        small.own_cache(folder / "cache")
        self.folder = folder
        self.text = small.write_text(folder)
        self.run = RunDir(folder / "run")
        small.train(small.settings_for(self.text), self.run.path)
        (self.tokens,) = {path.parent for path in (folder / "cache").rglob("meta.json")}
        self.case = RunDir(folder / "case")
        self.case.path.mkdir()
        torch.set_flush_denormal(False)  # as the run has it; hypothesis wants to know its numbers

    def targets(self) -> dict[str, Target]:
        """All targets by name."""
        record = torch.load(self.run.latest, weights_only=True)
        lines = self.run.metrics.read_bytes().splitlines(keepends=True)
        values = yaml.safe_load(self.run.settings.read_bytes())
        kinds = {json.loads(line)["event"]: line for line in lines}
        return {
            "settings, bytes": Target(spoiled(_SETTINGS), self.settings, 0.08),
            "settings, values": Target(changed(values), self.values, 0.15),
            "durations and moments": Target(
                st.text(max_size=12) | st.from_regex(r"[0-9 :dhms.+-]{1,20}"), self.moments, 0.15
            ),
            "JSONL": Target(st.lists(self._rows(), max_size=4).map(b"".join), self.jsonl, 0.12),
            "meta.json": Target(self._changed_file(self.tokens / "meta.json"), self.meta, 0.10),
            "tokenizer.json": Target(
                self._changed_file(self.tokens / "tokenizer.json"), self.tokenizer, 0.05
            ),
            "lock": Target(self._lock(), self.lock, 0.10),
            "overnight.json": Target(self._night(), self.night, 0.05),
            "one event": Target(
                st.sampled_from(list(kinds.values())).flatmap(self._changed_line), self.event, 0.15
            ),
            "metrics.jsonl": Target(
                st.lists(st.sampled_from(lines).flatmap(self._changed_line), min_size=1, max_size=6).map(
                    b"".join
                ),
                self.metrics,
                0.05,
            ),
            "checkpoint": Target(changed(record), self.checkpoint, 0.045),
            "checkpoint, resumed": Target(changed(record), self.resumed, 0.005),
        }

    # Inputs

    @staticmethod
    def _changed_line(line: bytes) -> st.SearchStrategy[bytes]:
        return st.one_of(st.just(line), as_json(changed(json.loads(line))), spoiled(line))

    @staticmethod
    def _changed_file(path: Path) -> st.SearchStrategy[bytes]:
        content = path.read_bytes()
        return spoiled(content) | as_json(changed(json.loads(content)))

    @staticmethod
    def _rows() -> st.SearchStrategy[bytes]:
        return as_json(_VALUES) | as_json(st.fixed_dictionaries({"text": _VALUES})) | st.binary(max_size=30)

    def _lock(self) -> st.SearchStrategy[bytes]:
        with lock.locked(self.case):
            content = self.case.lock.read_bytes()
        return as_json(changed(json.loads(content))) | spoiled(content)

    def _night(self) -> st.SearchStrategy[bytes]:
        it = supervisor_state.new_state(self.case, ["--steps", "9"])
        it.set_supervisor()
        it.attempts = [
            supervisor_state.Attempt(began=1.0, ended=2.0, code=1, step=3, error="x"),
            supervisor_state.Attempt(began=4.0),
        ]
        supervisor_state.write(self.case, it)
        content = self.case.overnight.read_bytes()
        self.case.overnight.unlink()
        return as_json(changed(json.loads(content))) | spoiled(content)

    # Readers

    def settings(self, content: bytes) -> None:
        path = self.folder / "my.yaml"
        path.write_bytes(content)
        resolve(config=path)

    def values(self, values: Any) -> None:
        validate(values)

    def moments(self, text: str) -> None:
        with contextlib.suppress(CpulmError):
            parse_until(text)
        with contextlib.suppress(ValueError):
            parse_duration(text)
        key = ("train.until=", "train.max_time=", "train.lr=", "")[len(text) % 4]
        resolve(assignments=[key + text])

    def jsonl(self, content: bytes) -> None:
        path = self.folder / "rows.jsonl"
        path.write_bytes(content)
        list(read_chunks(find_files([str(path)])[0], Reading()))

    def meta(self, content: bytes) -> None:
        self._token_file("meta.json", content)

    def tokenizer(self, content: bytes) -> None:
        self._token_file("tokenizer.json", content)

    def _token_file(self, name: str, content: bytes) -> None:
        path = self.tokens / name
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            if name == "tokenizer.json":
                with contextlib.suppress(CpulmError):
                    tokenizer = Tokenizer.from_file(path)
                    tokenizer.decode(tokenizer.encode("cats"))
            TokenFolder.open(self.tokens).verify()
        finally:
            path.write_bytes(whole)

    def lock(self, content: bytes) -> None:
        # A line with another file's id refers to no file: let some refer to this one.
        self.case.lock.write_bytes(content)
        lock.holder(self.case)
        status.status_of(self.case)
        with lock.locked(self.case):
            pass

    def night(self, content: bytes) -> None:
        self.case.lock.write_bytes(b"")
        self.case.overnight.write_bytes(content)
        try:
            found = supervisor_state.read(self.case)
            if found is not None:
                found.is_active()
                supervisor_state.write(self.case, found)
            night.summary(self.case)
            status.status_of(self.case)
        finally:
            self.case.overnight.unlink()

    def event(self, line: bytes) -> None:
        with contextlib.suppress(ValueError):
            from_json(line.decode("utf-8", "replace"))

    def metrics(self, content: bytes) -> None:
        self.case.lock.write_bytes(b"")
        self.case.metrics.write_bytes(content)
        status.status_of(self.case)
        supervisor_state.checkpoint_step(self.case)
        night.summary(self.case)
        snapshot = snapshot_of(read_events(self.case.metrics))
        console = type(stderr())(file=io.StringIO(), width=100)
        console.print(render(snapshot, 100, 30, now=time.time()))
        if snapshot.started is not None:
            console.print(render_summary(snapshot, 100))
        truncate_after(self.case.metrics, 6)
        self.case.metrics.unlink()

    def _written(self, record: Any) -> Path:
        """The record with a valid digest."""
        with self.case.latest.open("w+b") as file:
            torch.save(record, file)
            seal(file)
        return self.case.latest

    def checkpoint(self, record: Any) -> None:
        path = self._written(record)
        checkpoints.load(path)
        load_model(path, warn=lambda _: None)

    def resumed(self, record: Any) -> None:
        self._written(record)

        def show(event: Event) -> None:
            if isinstance(event, RunStarted):
                raise Enough

        try:
            with contextlib.suppress(Enough):
                small.resume(self.case.path, show)
        finally:
            for path in self.case.path.iterdir():
                path.unlink()


def fuzz(count: int, random_seed: int = 1) -> dict[str, Any]:
    """Run about ``count`` cases over all targets, drawn from a seed; return the first fault of each."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for target_name, target in World(Path(name)).targets().items():
            began = time.monotonic()
            cases, fault = attack(target, max(1, round(count * target.share)), random_seed)
            seconds = round(time.monotonic() - began, 1)
            print(
                f"{target_name}: {cases:,} cases in {seconds} s {fault[-300:]}", file=sys.stderr, flush=True
            )
            rows.append({"target": target_name, "cases": cases, "seconds": seconds, "fault": fault})
    return {"cases": sum(row["cases"] for row in rows), "targets": rows}


def attack(target: Target, count: int, random_seed: int = 1) -> tuple[int, str]:
    """Run a number of cases on a target; return the count and the first failure, if any."""
    done, failed = 0, ""

    @seed(random_seed)
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=False,
        database=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=target.cases)
    def take(case: Any) -> None:
        nonlocal done, failed
        done += 1
        try:
            with contextlib.suppress(CpulmError):
                target.read(case)
        except Exception:
            failed = failed or f"{traceback.format_exc()[-900:]}on {repr(case)[:600]}"
            raise

    with contextlib.suppress(Exception):
        take()
    return done, failed


def told(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    lines = [f"{result['cases']:,} cases"]
    for row in result["targets"]:
        lines.append(f"  {row['target']:<24} {row['cases']:>7,} {row['seconds']:>7.1f} s")
        lines += [f"    {line}" for line in row["fault"].splitlines()]
    return lines
