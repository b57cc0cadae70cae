"""Runs a sweep: which trial trains next, which continue at a rung, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cpulm.command import typed
from cpulm.errors import (
    AbortedError,
    CpulmError,
    DataError,
    DivergedError,
    ResourceError,
    SettingsError,
    StoppedError,
)
from cpulm.exit_codes import exit_in_words
from cpulm.interrupts import StopRequest
from cpulm.run_dir import RunDir
from cpulm.runs.lock import holder, locked
from cpulm.runs.status import is_at_work
from cpulm.runs.stop_file import is_stop_requested, request_stop
from cpulm.sweep.plan import Plan, SweepDir, Trial
from cpulm.sweep.trial_process import TrialProcess
from cpulm.sweep.trial_status import (
    FAILED,
    FINISHED,
    LEFT_OUT,
    LOST,
    PAUSED,
    RUNNING,
    WAITING,
    TrialLog,
    TrialStatus,
    trial_status,
)

LOOK_SECONDS = 0.5
_ERRORS: dict[int, type[CpulmError]] = {
    error.exit_code: error for error in (SettingsError, DataError, DivergedError, ResourceError)
}


@dataclass(frozen=True)
class Board:
    """The state of a sweep.

    ``seconds_left`` is the estimated remaining time at the speed so far, None until known. ``rung`` is the
    current one, ``rungs`` how many there are before the end.
    """

    folder: SweepDir
    trials: tuple[TrialStatus, ...]
    rung: int
    rungs: int
    seconds_left: float | None


class Sweep:
    """Runs a sweep from its plan to its end; finished work is not repeated.

    Args:
        show: called with the state, about twice a second.
        say: called with each message.
    """

    def __init__(
        self, folder: SweepDir, plan: Plan, *, show: Callable[[Board], None], say: Callable[[str], None]
    ) -> None:
        self._folder, self._plan = folder, plan
        self._show, self._say = show, say
        self._progress = {trial: TrialLog(folder.run(trial)) for trial in plan.trials}
        self._state = dict.fromkeys(plan.trials, WAITING)
        self._rung = dict.fromkeys(plan.trials, 0)
        self._said: dict[Trial, str] = {}
        self._codes: dict[Trial, int] = {}
        self._running: list[TrialProcess] = []
        self._alive: list[Trial] = list(plan.trials)
        self._level = 0

    def work(self) -> tuple[TrialStatus, ...]:
        """Train until the plan is complete.

        Returns:
            The trials, best first: those that trained furthest, and among them by bits per byte.

        Raises:
            StoppedError: on a request to stop, once every run is saved.
            AbortedError: on a second request; the runs' last checkpoints are kept.
            SettingsError: if another process is running this sweep.
            CpulmError: if no trial was validated; the error of the first failed trial.
        """
        self._refuse_company()
        with StopRequest() as stop, locked(RunDir(self._folder.path)):
            try:
                self._go_through(stop)
            except AbortedError:
                for process in self._running:
                    process.kill()
                raise
        ranked = self.ranked()
        if all(one.bits_per_byte is None for one in ranked):
            raise self._failure()
        return ranked

    def ranked(self) -> tuple[TrialStatus, ...]:
        """Return the trials, best first."""
        found = (self._status(trial) for trial in self._plan.trials)
        return tuple(sorted(found, key=_rank))

    def _go_through(self, stop: Callable[[], bool]) -> None:
        """Go from rung to rung. If an error ends the sweep, such as a full disk, its runs save and stop."""
        try:
            self._end_leftovers(stop)
            for level, keep in enumerate((*self._plan.keep, None)):
                self._level = level
                self._bring_on(stop)
                if keep is not None:
                    self._choose(level, keep)
        except Exception as error:
            if not isinstance(error, AbortedError):
                self._save_running()
            raise

    def _refuse_company(self) -> None:
        other = holder(RunDir(self._folder.path))
        if other is not None and other.alive:
            raise SettingsError(
                f"process {other.pid} on {other.host} is already running {self._folder.path}",
                "wait until it ends, or press Ctrl-C in its terminal",
            )

    def _save_running(self) -> None:
        """Request the runs to stop, and wait until they have saved."""
        while self._running:
            for process in list(self._running):
                if process.poll() is None:
                    process.request_stop()
                else:
                    self._running.remove(process)
            time.sleep(LOOK_SECONDS)

    def _target(self, trial: Trial) -> int | None:
        """The step up to which the trial trains now; None: its end."""
        return trial.rungs[self._level] if self._level < len(self._plan.keep) else None

    def _end_leftovers(self, stop: Callable[[], bool]) -> None:
        """Stop processes left by a killed sweep, which save and end before new ones start."""
        for trial in self._plan.trials:
            run = self._folder.run(trial)
            if is_at_work(run):
                self._say(f"{trial.name} is still being trained by an earlier sweep: requesting it to stop")
            while is_at_work(run):
                if stop():
                    raise self._stopped()
                if not is_stop_requested(run):
                    request_stop(run)
                time.sleep(LOOK_SECONDS)

    def _bring_on(self, stop: Callable[[], bool]) -> None:
        """Train the remaining trials up to the rung, or to their end."""
        for trial in self._alive:
            self._progress[trial].follow()
        waiting = [trial for trial in self._alive if not self._is_there(trial)]
        announced = False
        while waiting or self._running:
            if stop() and self._running and not announced:
                announced = True
                self._say(
                    "stopping: each run finishes its step and saves; press Ctrl-C again to exit immediately"
                )
            while waiting and len(self._running) < self._plan.parallel and not stop():
                self._start(waiting.pop(0))
            self._look(stop)
            self._show(self.board())
            if stop() and not self._running:
                raise self._stopped()
            time.sleep(LOOK_SECONDS)
        self._show(self.board())

    def _is_there(self, trial: Trial) -> bool:
        progress = self._progress[trial]
        if progress.has_ended():
            self._state[trial] = FINISHED
        elif progress.has_reached(self._target(trial)):
            self._state[trial] = PAUSED
        elif progress.has_diverged():
            self._state[trial] = LOST
        else:
            return self._state[trial] == FAILED
        return True

    def _start(self, trial: Trial) -> None:
        self._state[trial] = RUNNING
        self._running.append(TrialProcess(self._folder, self._plan, trial))

    def _look(self, stop: Callable[[], bool]) -> None:
        """Check the processes; stop those that have reached their target."""
        for process in list(self._running):
            trial = process.trial
            code = process.poll()
            progress = self._progress[trial]
            progress.follow()
            if code is not None:
                self._running.remove(process)
                self._ended(process, code)
            elif stop() or (not progress.has_ended() and progress.has_reached(self._target(trial))):
                process.request_stop()

    def _ended(self, process: TrialProcess, code: int) -> None:
        trial = process.trial
        self._codes[trial] = code
        if self._is_there(trial):
            return
        self._state[trial] = WAITING
        if process.stop_requested:
            return
        self._state[trial] = FAILED
        words = (
            "stopped by another user or program" if code == StoppedError.exit_code else exit_in_words(code)
        )
        said = process.error_message()
        self._said[trial] = f"{words}: {said}" if said and code != StoppedError.exit_code else words
        self._say(f"{trial.name} is dropped: {self._said[trial]}")

    def _choose(self, level: int, keep: int) -> None:
        """Let the better trials continue; the others keep their checkpoints."""
        fit = [trial for trial in self._alive if self._state[trial] not in (FAILED, LOST)]
        fit.sort(key=lambda trial: self._progress[trial].best_until(trial.rungs[level]))
        kept = fit[:keep]
        for trial in fit[keep:]:
            if self._state[trial] != FINISHED:
                self._state[trial] = LEFT_OUT
        for trial in kept:
            self._rung[trial] = level + 1
        self._alive = [trial for trial in self._plan.trials if trial in kept]
        if kept:
            names = ", ".join(trial.name for trial in kept)
            self._say(
                f"rung {level + 1} of {len(self._plan.keep)}: {len(kept)} of {len(fit)} continue: {names}"
            )

    def board(self) -> Board:
        return Board(
            folder=self._folder,
            trials=tuple(self._status(trial) for trial in self._plan.trials),
            rung=self._level,
            rungs=len(self._plan.keep),
            seconds_left=self._seconds_left(),
        )

    def _status(self, trial: Trial) -> TrialStatus:
        return trial_status(
            trial, self._progress[trial], self._state[trial], self._rung[trial], self._said.get(trial, "")
        )

    def _seconds_left(self) -> float | None:
        """Estimate from the seconds per step so far, with concurrent runs; run time includes validations."""
        paces = [
            progress.elapsed_seconds / progress.step for progress in self._progress.values() if progress.step
        ]
        if not paces or any(trial.steps is None for trial in self._plan.trials):
            return None
        pace = sum(paces) / len(paces)
        left = 0.0
        alive = self._alive
        for trial in alive:
            progress = self._progress[trial]
            if self._state[trial] in (FAILED, LOST, FINISHED):
                continue
            own = progress.elapsed_seconds / progress.step if progress.step else pace
            left += max(0, (self._target(trial) or trial.steps or 0) - progress.step) * own
        for level in range(self._level, len(self._plan.keep)):
            trial = self._plan.trials[0]
            ends = (*trial.rungs, trial.steps or 0)
            left += min(self._plan.keep[level], len(alive)) * max(0, ends[level + 1] - ends[level]) * pace
        return left / min(self._plan.parallel, max(1, len(alive)))

    def _stopped(self) -> StoppedError:
        folder = self._folder.path
        return StoppedError(
            f"everything is saved in {folder}", f"continue with `cpulm resume {typed(folder)}`"
        )

    def _failure(self) -> CpulmError:
        """The error of a sweep without any result, by the exit code of its first failed trial."""
        trial = next((one for one in self._plan.trials if one in self._codes), self._plan.trials[0])
        kind = _ERRORS.get(self._codes.get(trial, 1), CpulmError)
        said = self._said.get(trial) or self._state[trial]
        return kind(f"no trial was validated; {trial.name}: {said}", f"see {self._folder.log(trial)}")


def _rank(one: TrialStatus) -> tuple[int, float, str]:
    score = float("inf") if one.bits_per_byte is None else one.bits_per_byte
    return -one.rung, score, one.name
