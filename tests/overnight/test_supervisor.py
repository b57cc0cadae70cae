"""The supervisor of a night: its reaction to every way in which a process can end."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_events import checkpoint_saved, run_finished, step_done

from cpulm.events import Event, to_json
from cpulm.overnight import supervisor
from cpulm.overnight.log import Log
from cpulm.overnight.supervisor import PAUSES, TRIES, Decision, Supervisor, decide
from cpulm.run_dir import RunDir
from cpulm.runs import supervisor_state
from cpulm.runs.supervisor_state import NightState, SupervisorState
from cpulm.system import process

# What a process does is read from plan.json, one entry per start. Its signals are those of ``cpulm train``.
PROGRAM = """
import json, os, pathlib, signal, sys, time
home = pathlib.Path(__file__).parent
starts = home / "starts.jsonl"
number = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
plan = json.loads((home / "plan.json").read_text())[number]
run = home / "run"
run.mkdir(exist_ok=True)
def ended(*_):
    sys.exit(75)
signal.signal(signal.SIGTERM, ended)
if plan.get("takes_requests"):
    (run / "stop").unlink(missing_ok=True)
with (run / "metrics.jsonl").open("a") as file:
    for event in plan.get("lines", []):
        event["time"] = time.time() - plan.get("behind", 0)
        file.write(json.dumps(event, separators=(",", ":")) + "\\n")
if "say" in plan:
    print(plan["say"], file=sys.stderr, flush=True)
if plan.get("ask"):
    (run / "stop").write_text("please")
if "signal_supervisor" in plan:
    os.kill(os.getppid(), plan["signal_supervisor"])
if plan.get("waits_for_request"):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if (run / "stop").exists():
            sys.exit(75)
        time.sleep(0.02)
    sys.exit(99)
if "kill" in plan:
    os.kill(os.getpid(), plan["kill"])
sys.exit(plan.get("code", 0))
"""


@pytest.mark.parametrize(
    ("code", "progressed", "tries", "asked", "shut_down", "then"),
    [
        (0, True, 0, False, False, Decision("finished", 0)),
        (0, False, 5, True, True, Decision("finished", 0)),
        (2, True, 0, False, False, Decision("failed", 0)),
        (3, True, 0, False, False, Decision("failed", 0)),
        (4, True, 0, False, False, Decision("failed", 0)),
        (4, True, 0, False, True, Decision("failed", 0)),
        (75, True, 0, False, False, Decision("stopped", 0)),
        (75, True, 0, True, False, Decision("stopped", 0)),
        (130, False, 1, False, False, Decision("stopped", 1)),
        (-2, False, 1, False, False, Decision("stopped", 1)),
        (-9, True, 3, True, False, Decision("stopped", 3)),
        (2, True, 0, True, False, Decision("stopped", 0)),
        (75, True, 0, False, True, Decision("interrupted", 0)),
        (75, True, 0, True, True, Decision("stopped", 0)),
        (-15, True, 2, False, True, Decision("interrupted", 2)),
        (-9, True, 0, False, False, Decision("waiting", 0, 5)),
        (-9, True, 7, False, False, Decision("waiting", 0, 5)),
        (-11, False, 0, False, False, Decision("waiting", 1, 15)),
        (-15, False, 1, False, False, Decision("waiting", 2, 45)),
        (1, False, 2, False, False, Decision("waiting", 3, 135)),
        (137, False, 3, False, False, Decision("waiting", 4, 405)),
        (0xC0000005, False, 4, False, False, Decision("waiting", 5, 900)),
        (None, False, 5, False, False, Decision("waiting", 6, 900)),
        (-9, False, 7, False, False, Decision("given_up", 8)),
        (5, True, 0, False, False, Decision("waiting", 0, 135)),
        (5, False, 0, False, False, Decision("waiting", 1, 405)),
        (5, False, 1, False, False, Decision("waiting", 2, 900)),
        (5, False, 7, False, False, Decision("given_up", 8)),
    ],
)
def test_what_follows_the_end_of_a_process(
    code: int | None, progressed: bool, tries: int, asked: bool, shut_down: bool, then: Decision
) -> None:
    decision = decide(code, progressed=progressed, tries=tries, stop_requested=asked, shut_down=shut_down)
    assert decision == then


def test_pauses_grow_to_a_quarter_of_an_hour() -> None:
    assert list(PAUSES) == sorted(PAUSES)
    assert (PAUSES[0], PAUSES[-1], TRIES) == (5, 15 * 60, 8)


@pytest.fixture
def _signals() -> Iterator[None]:
    """The supervisor takes this process's signals for itself."""
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    previous = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def spend(
    home: Path, plan: list[dict[str, Any]], *, first: str = "train", begun: bool = False
) -> tuple[int, SupervisorState | None]:
    """A night with the processes of ``plan``: the supervisor's exit code and its record."""
    (home / "plan.json").write_text(json.dumps([{**entry, "lines": lines(entry)} for entry in plan]))
    (home / "program.py").write_text(PROGRAM)
    run = RunDir(home / "run")
    night = supervisor_state.new_state(run, ["--steps", "9"] if first == "resume" else [])
    night.set_supervisor()
    watching = Supervisor(
        run,
        night,
        [first, "first"],
        Log(home / "first.log"),
        begun=begun,
        program=[sys.executable, str(home / "program.py")],
        pauses=[0.05],
        tick_seconds=0.05,
    )
    return watching.run(), supervisor_state.read(run)


def lines(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """What a process of the plan writes to the run log."""
    made: dict[str, Callable[[int], Event]] = {
        "step": step_done,
        "checkpoint": checkpoint_saved,
        "run_finished": lambda step: run_finished(step, entry["reason"]),
    }
    return [json.loads(to_json(made[kind](step))) for kind, step in entry.get("events", [])]


def starts(home: Path) -> list[list[str]]:
    return [json.loads(line) for line in (home / "starts.jsonl").read_text().splitlines()]


class SetBack:
    """A clock that somebody sets back by ``seconds`` once the file ``when`` exists."""

    def __init__(self, seconds: float, when: Path) -> None:
        self._clock, self._seconds, self._when = time.time, seconds, when

    def __call__(self) -> float:
        return self._clock() - (self._seconds if self._when.exists() else 0.0)


@pytest.mark.usefixtures("_signals")
class TestNights:
    def test_a_run_that_crashes_is_restarted_and_completed(self, tmp_path: Path) -> None:
        plan: list[dict[str, Any]] = [
            {"events": [("checkpoint", 0), ("step", 1), ("checkpoint", 4), ("step", 5)], "code": 1},
            {"events": [("step", 5)], "code": 5},
            {"events": [("checkpoint", 8)]},
        ]
        code, night = spend(tmp_path, plan)
        assert code == 0
        assert night is not None
        assert (night.state, night.tries) == ("finished", 0)
        assert [(part.code, part.from_step, part.step) for part in night.attempts] == [
            (1, None, 5),
            (5, 4, 5),
            (0, 4, 5),
        ]
        run = str(tmp_path / "run")
        again = ["resume", "--headless", "--", run]
        assert starts(tmp_path) == [["train", "first"], again, again]
        page = (tmp_path / "run/summary.md").read_text(encoding="utf-8")
        assert page.count("started again") == 2
        log = (tmp_path / "run/overnight.log").read_text(encoding="utf-8")
        assert "cpulm train first" in log
        assert not (tmp_path / "first.log").exists()

    @pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
    def test_a_run_that_is_killed_is_started_again(self, tmp_path: Path, number: int) -> None:
        plan: list[dict[str, Any]] = [{"events": [("checkpoint", 3)], "kill": int(number)}, {}]
        if number == signal.SIGTERM:
            plan[0]["code"] = 75  # as cpulm does: it saves and says that it was stopped on purpose
        code, night = spend(tmp_path, plan)
        assert night is not None
        if number == signal.SIGTERM:
            assert (code, night.state, len(night.attempts)) == (75, "stopped", 1)
        else:
            assert (code, night.state) == (0, "finished")
            assert night.attempts[0].code == -number

    @pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 75])
    def test_nothing_is_tried_again_before_the_run_has_begun(self, tmp_path: Path, code: int) -> None:
        plan = [{"code": code, "say": "error: what is wrong"}]
        ended, night = spend(tmp_path, plan)
        assert (ended, night) == (code, None)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]
        assert "error: what is wrong" in (tmp_path / "first.log").read_text(encoding="utf-8")

    @pytest.mark.parametrize("code", [2, 3, 4])
    def test_an_error_that_would_repeat_ends_the_night_and_is_named(self, tmp_path: Path, code: int) -> None:
        plan = [{"events": [("step", 1)], "code": 1}, {"code": code, "say": "error: the text has changed"}]
        ended, night = spend(tmp_path, plan)
        assert night is not None
        assert (ended, night.state) == (code, "failed")
        page = (tmp_path / "run/summary.md").read_text(encoding="utf-8")
        assert "Ended: the text has changed. Another start would fail in the same way." in page

    def test_it_gives_up_after_several_starts_without_a_newer_checkpoint(self, tmp_path: Path) -> None:
        idle = {"events": [("step", 5)], "code": 1}
        plan = [{"events": [("checkpoint", 4)], "code": 1}, idle, idle]
        plan += [{"events": [("checkpoint", 8)], "code": 1}, *[idle] * TRIES]
        ended, night = spend(tmp_path, plan)
        assert night is not None
        assert (ended, night.state, night.tries) == (1, "given_up", TRIES)
        assert len(starts(tmp_path)) == len(plan)

    def test_a_checkpoint_of_step_0_is_no_progress(self, tmp_path: Path) -> None:
        plan = [{"events": [("checkpoint", 0)], "code": 1}] * TRIES
        _, night = spend(tmp_path, plan)
        assert night is not None
        assert (night.state, len(night.attempts)) == ("given_up", TRIES)

    def test_a_new_horizon_is_given_until_a_checkpoint_holds_it(self, tmp_path: Path) -> None:
        plan: list[dict[str, Any]] = [
            {"events": [("step", 5)], "code": 1},
            {"events": [("checkpoint", 6)], "code": 1},
            {},
        ]
        spend(tmp_path, plan, first="resume")
        assert ["--steps" in start for start in starts(tmp_path)[1:]] == [True, False]

    def test_a_request_to_stop_ends_the_night(self, tmp_path: Path) -> None:
        plan = [{"events": [("step", 1)], "ask": True, "waits_for_request": True}]
        code, night = spend(tmp_path, plan)
        assert night is not None
        assert (code, night.state) == (75, "stopped")

    def test_a_request_that_meets_a_crash_is_not_forgotten(self, tmp_path: Path) -> None:
        plan = [{"events": [("step", 1)], "ask": True, "code": 1}]
        code, night = spend(tmp_path, plan)
        assert night is not None
        assert (code, night.state) == (1, "stopped")

    def test_a_request_that_a_starting_process_took_away_is_made_again(self, tmp_path: Path) -> None:
        late = {"events": [("step", 1)], "ask": True, "waits_for_request": True}
        # It asks, and some moments later removes the request, as ``cpulm resume`` does with an old one.
        program = PROGRAM.replace(
            'if plan.get("waits_for_request"):',
            'if plan.get("ask"):\n    time.sleep(0.5)\n    (run / "stop").unlink()\n'
            'if plan.get("waits_for_request"):',
        )
        assert program != PROGRAM
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules[__name__], "PROGRAM", program)
            code, night = spend(tmp_path, [late])
        assert night is not None
        assert (code, night.state) == (75, "stopped")

    def test_a_complete_run_is_finished_even_if_its_process_is_killed_afterwards(
        self, tmp_path: Path
    ) -> None:
        ends = {"events": [("step", 9), ("checkpoint", 9), ("run_finished", 9)], "reason": "horizon"}
        _, night = spend(tmp_path, [{**ends, "code": 137}])
        assert night is not None
        assert (night.state, len(night.attempts)) == ("finished", 1)

    def test_a_run_that_says_that_it_was_stopped_and_crashes_is_not_complete(self, tmp_path: Path) -> None:
        ends = {"events": [("checkpoint", 9), ("run_finished", 9)], "reason": "stopped"}
        _, night = spend(tmp_path, [{**ends, "code": 1}, {}])
        assert night is not None
        assert (night.state, len(night.attempts)) == ("finished", 2)

    def test_the_clock_is_set_back_at_the_start_of_the_night(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The events of the run are then older than its start as the supervisor noted it."""
        monkeypatch.setattr(time, "time", SetBack(86400.0, when=tmp_path / "starts.jsonl"))
        behind = {"behind": 86400.0, "events": [("step", 1), ("checkpoint", 4)]}
        code, night = spend(tmp_path, [{**behind, "code": 1}, {**behind, "events": [("step", 5)]}])
        assert night is not None
        assert (code, night.state, len(night.attempts)) == (0, "finished", 2)
        assert all(part.ended is not None and part.began <= part.ended for part in night.attempts)
        assert "started again from step 4" in (tmp_path / "run/summary.md").read_text(encoding="utf-8")

    def test_an_old_request_is_ignored(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/stop").write_text("last night")
        code, night = spend(tmp_path, [{"events": [("step", 1)], "code": 1}, {}])
        assert night is not None
        assert (code, night.state) == (0, "finished")

    @pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
    def test_a_shutdown_lets_the_run_save_so_that_it_can_be_continued(self, tmp_path: Path) -> None:
        going = {
            "events": [("step", 1)],
            "signal_supervisor": int(signal.SIGTERM),
            "waits_for_request": True,
        }
        code, night = spend(tmp_path, [going])
        assert night is not None
        assert (code, night.state) == (75, "interrupted")
        assert not (tmp_path / "run/stop").exists()

    @pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
    def test_an_interrupt_is_the_users_own_stop(self, tmp_path: Path) -> None:
        going = {"events": [("step", 1)], "signal_supervisor": int(signal.SIGINT), "waits_for_request": True}
        code, night = spend(tmp_path, [going])
        assert night is not None
        assert (code, night.state) == (75, "stopped")


class TestAtBoot:
    @pytest.fixture
    def run(self, tmp_path: Path) -> RunDir:
        run = RunDir(tmp_path / "run")
        run.path.mkdir()
        run.metrics.write_text(to_json(step_done(7, time=time.time() - 60)) + "\n")
        return run

    def leave(self, run: RunDir, state: NightState, **fields: Any) -> None:
        """A night's record by a supervisor that is gone."""
        night = supervisor_state.new_state(run, [])
        night.state, night.host = state, process.host_name()
        night.pid, night.pid_started = os.getpid(), "another process with this number"
        for name, value in fields.items():
            setattr(night, name, value)
        supervisor_state.write(run, night)

    @pytest.mark.parametrize("state", ["training", "waiting", "interrupted"])
    def test_an_interrupted_night_is_continued(
        self, run: RunDir, state: NightState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(Path.cwd())  # it goes to the folder where the run was started
        self.leave(run, state, attempts=[supervisor_state.Attempt(began=time.time() - 99, from_step=4)])
        assert supervisor.at_boot(run) is not None
        assert Path.cwd() == Path(supervisor_state.new_state(run, []).folder)

    @pytest.mark.parametrize("state", ["finished", "stopped", "failed", "given_up"])
    def test_a_night_that_is_over_stays_over(self, run: RunDir, state: NightState) -> None:
        self.leave(run, state)
        assert supervisor.at_boot(run) is None
        night = supervisor_state.read(run)
        assert night is not None
        assert night.state == state

    def test_a_run_that_is_watched_is_left_alone(self, run: RunDir) -> None:
        night = supervisor_state.new_state(run, [])
        night.set_supervisor()
        supervisor_state.write(run, night)
        assert supervisor.at_boot(run) is None

    def test_a_run_that_was_complete_when_the_computer_went_down_is_finished(self, run: RunDir) -> None:
        self.leave(run, "training", attempts=[supervisor_state.Attempt(began=time.time() - 99)])
        with run.metrics.open("a") as file:
            file.write(to_json(run_finished(7, "horizon", time=time.time() - 50)) + "\n")
        assert supervisor.at_boot(run) is None
        night = supervisor_state.read(run)
        assert night is not None
        assert night.state == "finished"

    def test_a_request_to_stop_from_before_is_honoured(self, run: RunDir) -> None:
        self.leave(run, "training")
        run.stop.write_text("please")
        assert supervisor.at_boot(run) is None
        night = supervisor_state.read(run)
        assert night is not None
        assert night.state == "stopped"

    def test_a_run_that_crashes_the_computer_is_not_restarted_forever(self, run: RunDir) -> None:
        self.leave(
            run, "training", tries=TRIES - 1, attempts=[supervisor_state.Attempt(began=time.time() - 99)]
        )
        assert supervisor.at_boot(run) is None
        night = supervisor_state.read(run)
        assert night is not None
        assert night.state == "given_up"

    def test_a_run_without_a_night_and_a_damaged_record_are_left_alone(self, run: RunDir) -> None:
        assert supervisor.at_boot(run) is None
        run.overnight.write_text('{"run": 1')
        assert supervisor.at_boot(run) is None
