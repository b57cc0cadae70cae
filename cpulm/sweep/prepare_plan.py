"""Turns a request into the plan of a sweep; all errors are found before any training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpulm.command import typed
from cpulm.data.packing import tokens_per_epoch
from cpulm.data.prepare import prepare_fitting
from cpulm.data.sources import require_lasting_text
from cpulm.data.tokenfile import TokenFolder
from cpulm.data.tokenizer import Tokenizer
from cpulm.errors import ResourceError, SettingsError
from cpulm.estimate import requirements
from cpulm.estimate.memory import expected_arithmetic, memory_bytes
from cpulm.events import Listener
from cpulm.settings import HORIZONS, Settings, changed
from cpulm.settings.resolve_settings import is_given, resolve
from cpulm.sweep.choices import Axis, Combination, axes_of, drawn, grid
from cpulm.sweep.halving import rung_steps, rungs
from cpulm.sweep.plan import PLAN, Plan, SweepDir, Trial, is_same, keep_of, read_plan, trial_names, write_plan
from cpulm.system.machine import Machine, choose
from cpulm.units import format_bytes

_SAME_TOKENS = 0.01


@dataclass(frozen=True)
class Beginning:
    """What runs take from the trained model that they begin with: values by dotted key, and its tokenizer."""

    values: Mapping[str, Any]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Wish:
    """The request: settings as ``cpulm train`` takes them, with several values in the assignments.

    ``flags`` are settings by their dotted keys, None for those not given. ``random`` is how many combinations
    to draw by ``random_seed``; None for the whole grid. ``begin`` reads the model that settings with
    ``train.init_from`` name.
    """

    preset: str | None
    config: Path | None
    environ: Mapping[str, str]
    assignments: tuple[str, ...]
    flags: Mapping[str, Any]
    begin: Callable[[Settings], Beginning]
    random: int | None
    random_seed: int
    parallel: int
    halving: bool


def make_plan(
    wish: Wish, machine: Machine, *, show: Listener, should_stop: Callable[[], bool]
) -> tuple[Plan, list[Settings]]:
    """Make the plan and the settings of each trial, and prepare the data.

    Raises:
        SettingsError: if a setting is unknown, or a combination does not fit.
        CpulmError: if the data cannot be used, or the memory is not enough.
    """
    fixed, axes = axes_of(wish.assignments)
    _check(wish, fixed, axes)
    combinations, settings = _resolved(wish, fixed, axes)
    settings = _with_threads(settings, wish, machine)
    folders, settings = _prepared(settings, wish, _block_is_wish(wish, axes), show, should_stop)
    _check_memory(settings, folders, wish.parallel, machine)
    keys = [axis.key for axis in axes]
    steps = [
        requirements.total_steps(one.train, one.tokens_per_step, tokens_per_epoch(one, tokens))
        for one, tokens in zip(settings, folders, strict=True)
    ]
    looks = rungs(len(settings)) if wish.halving else ()
    if looks:
        _check_equal_tokens(steps, settings)
    trials, adapted = [], []
    for name, one, total in zip(trial_names(keys, combinations), settings, steps, strict=True):
        every, at = rung_steps(total or 0, one.eval.every, looks)
        adapted.append(changed(one, eval=changed(one.eval, every=every)))
        trials.append(Trial(name, total, at))
    return Plan(str(Path.cwd()), tuple(keys), wish.parallel, keep_of(looks), tuple(trials)), adapted


def _check(wish: Wish, fixed: Sequence[str], axes: Sequence[Axis]) -> None:
    """Refuse errors that no combination can avoid, before there are any combinations."""
    if not axes:
        raise SettingsError(
            "nothing to try: no --set has several values", "such as --set train.lr=1e-3,2e-3,4e-3"
        )
    for axis in axes:
        if wish.flags.get(axis.key) is not None:
            raise SettingsError(
                f"{axis.key} is given twice: by its own option and by --set {axis.key}=…",
                "keep one of them",
            )
        for text in axis.ends():
            try:
                _settings(wish, [*fixed, f"{axis.key}={text}"])
            except SettingsError as error:
                # An error that names a section concerns several settings: with the other axes they may fit.
                if error.message.partition(":")[0] not in Settings.model_fields:
                    raise


def _settings(wish: Wish, assignments: Sequence[str]) -> Settings:
    def resolved(initial: Mapping[str, Any] | None) -> Settings:
        return resolve(
            preset=wish.preset,
            config=wish.config,
            environ=wish.environ,
            assignments=assignments,
            flags=wish.flags,
            initial=initial,
        )

    given = resolved(None)
    return given if given.train.init_from is None else resolved(wish.begin(given).values)


def _resolved(
    wish: Wish, fixed: Sequence[str], axes: Sequence[Axis]
) -> tuple[list[Combination], list[Settings]]:
    """Return the combinations and their settings; random draws that are invalid are left out.

    Raises:
        SettingsError: if a combination of a grid does not fit, or there are fewer than requested.
    """
    if wish.random is None:
        combinations = grid(axes)
        return combinations, [_one(wish, fixed, axes, values) for values in combinations]
    found: dict[Combination, Settings] = {}
    problem = ""
    for values in itertools.islice(drawn(axes, wish.random_seed), 100 * wish.random):
        if len(found) == wish.random:
            break
        try:
            found[values] = _one(wish, fixed, axes, values)
        except SettingsError as error:
            problem = f"; the others do not fit, such as {error.message}"
    if len(found) < wish.random:
        raise SettingsError(
            f"--random {wish.random}: there are only {len(found)} different combinations{problem}",
            "request fewer, or give more values",
        )
    return list(found), list(found.values())


def _one(wish: Wish, fixed: Sequence[str], axes: Sequence[Axis], values: Combination) -> Settings:
    given = [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]
    try:
        settings = _settings(wish, [*fixed, *given])
    except SettingsError as error:
        raise SettingsError(f"{', '.join(given)}: {error.message}", error.hint) from error
    if all(getattr(settings.train, name) is None for name in HORIZONS):
        raise SettingsError(
            "the runs have no horizon: train.steps, train.epochs, train.tokens and train.max_time are unset",
            "give --steps, --epochs, --tokens or --max-time",
        )
    if settings.train.until is not None:
        raise SettingsError(
            "train.until is one moment for all runs, so those that start later would get less time",
            "give each of them the same time: --max-time 1h, or --tokens N",
        )
    return settings


def _with_threads(settings: Sequence[Settings], wish: Wish, machine: Machine) -> list[Settings]:
    """Divide the cores among the concurrent runs, unless the number of threads was set."""
    cores = choose(machine).threads.value
    if not 1 <= wish.parallel <= cores:
        raise SettingsError(
            f"--parallel {wish.parallel}: this process may use only {cores} physical cores",
            f"use 1 to {cores}",
        )
    if wish.parallel == 1:
        return list(settings)
    share = cores // wish.parallel
    return [
        changed(one, runtime=changed(one.runtime, threads=one.runtime.threads or share)) for one in settings
    ]


def _prepared(
    settings: Sequence[Settings],
    wish: Wish,
    block_is_wish: bool,
    show: Listener,
    should_stop: Callable[[], bool],
) -> tuple[list[TokenFolder], list[Settings]]:
    """Prepare the tokens of each trial, once for all that share them; the trials find them in the cache.

    Returns the tokens, and the settings with block sizes that they hold.
    """
    require_lasting_text([one.data for one in settings], "a sweep")
    made: dict[tuple[str, int, str | None], tuple[TokenFolder, int]] = {}
    folders, fitted = [], []
    for one in settings:
        key = (repr(one.data), one.model.block_size, one.train.init_from)
        if key not in made:
            tokens, fits = prepare_fitting(
                one,
                emit=show,
                should_stop=should_stop,
                block_is_wish=block_is_wish,
                tokenizer=None if one.train.init_from is None else wish.begin(one).tokenizer,
            )
            made[key] = tokens, fits.model.block_size
        tokens, block = made[key]
        folders.append(tokens)
        fitted.append(changed(one, model=changed(one.model, block_size=block)))
    return folders, fitted


def _block_is_wish(wish: Wish, axes: Sequence[Axis]) -> bool:
    """Whether nobody gave the block size, so that it may follow the text."""
    return not is_given(
        "model.block_size",
        config=wish.config,
        environ=wish.environ,
        assignments=[*wish.assignments, *(f"{axis.key}=" for axis in axes)],
        flags=wish.flags,
    )


def _check_memory(
    settings: Sequence[Settings], folders: Sequence[TokenFolder], parallel: int, machine: Machine
) -> None:
    sizes = sorted(
        (
            memory_bytes(one, tokens.vocab_size, expected_arithmetic(one, machine))
            for one, tokens in zip(settings, folders, strict=True)
        ),
        reverse=True,
    )
    needed, available = sum(sizes[:parallel]), machine.memory_available_bytes
    if needed > available:
        runs = "the largest run needs" if parallel == 1 else f"the {parallel} largest runs together need"
        raise ResourceError(
            f"{runs} about {format_bytes(needed)} of memory, and {format_bytes(available)} are available",
            "use a lower --parallel, or a smaller train.micro_batch_size",
        )


def _check_equal_tokens(steps: Sequence[int | None], settings: Sequence[Settings]) -> None:
    """Halving compares trials after equal fractions of training, which must be equal numbers of tokens."""
    totals = [
        None if total is None else total * one.tokens_per_step
        for total, one in zip(steps, settings, strict=True)
    ]
    known = [total for total in totals if total is not None]
    if len(known) < len(totals):
        raise SettingsError(
            "--halving compares the runs after equal numbers of tokens, but their horizon is a time",
            "give --tokens, --steps or --epochs",
        )
    if max(known) - min(known) > _SAME_TOKENS * max(known):
        raise SettingsError(
            f"--halving compares the runs after equal numbers of tokens; these train on {min(known):,} to "
            f"{max(known):,}",
            "give the horizon in tokens: --tokens N",
        )


def settle(out: Path | None, stem: str, plan: Plan, settings: Sequence[Settings]) -> tuple[SweepDir, bool]:
    """Return the folder of the sweep, and whether it existed: an identical sweep is continued.

    Args:
        out: the requested folder; None for a new one under ``sweeps/``.

    Raises:
        SettingsError: if ``out`` holds something else.
    """
    if out is not None:
        folder = SweepDir(out)
        if is_same(folder, plan, settings):
            return folder, True
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            what = "another sweep" if folder.plan.is_file() else "something else"
            raise SettingsError(
                f"{out} holds {what}",
                f"choose another --out, or continue that sweep: `cpulm resume {typed(out)}`",
            )
        write_plan(folder, plan, settings)
        return folder, False
    number = 0
    while True:
        number += 1
        folder = SweepDir(Path("sweeps") / f"{stem}-{number}")
        if not folder.path.exists():
            write_plan(folder, plan, settings)
            return folder, False
        if is_same(folder, plan, settings):
            return folder, True


def resumed(path: Path) -> tuple[SweepDir, Plan]:
    """Open a sweep to continue.

    Raises:
        DataError: if there is no sweep at ``path``.
    """
    folder = SweepDir(path.parent if path.name == PLAN else path)
    return folder, read_plan(folder)
