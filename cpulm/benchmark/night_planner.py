"""Plans a training run of a given duration on this machine and text: finds the best model size.

The step of each size is measured. A few short pilot runs of the smaller sizes, each with a complete schedule,
determine how the loss falls with size and tokens (:mod:`cpulm.estimate.scaling_law`). Both together give the
expected loss of each size after the tokens that it can be trained on in that time.
"""

from __future__ import annotations

import math
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from cpulm.data.prepare import prepare_fitting
from cpulm.data.tokenfile import TokenFolder
from cpulm.errors import ResourceError, SettingsError, StoppedError
from cpulm.estimate import requirements
from cpulm.estimate.memory import arithmetic_of
from cpulm.estimate.repeated_text import MOST_PASSES
from cpulm.estimate.scaling_law import Expectation, Observation, ScalingLaw
from cpulm.events import Event, Listener, Progress, StepDone, Validated
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.step_timing import measure_step
from cpulm.interrupts import StopRequest
from cpulm.model.counts import count
from cpulm.settings import Settings, changed
from cpulm.system.machine import Machine, read_machine
from cpulm.training import run as runs
from cpulm.training.build import build_parts
from cpulm.units import format_duration

SHAPES = (
    (4, 128, 2),
    (4, 192, 3),
    (6, 256, 4),
    (6, 320, 5),
    (6, 384, 6),
    (8, 448, 7),
    (8, 512, 8),
    (10, 640, 10),
)
"""Layers, width and heads. All heads are 64 wide, and deeper models are wider, as in the presets."""
SHORTEST_SECONDS = 600.0
_PILOT_SHAPES = 3
_PILOT_PART = 1 / 20
_PILOT_SECONDS = (60.0, 900.0)
"""The pilots take a twentieth of the planned time, but at least one and at most fifteen minutes."""
_LENGTHS = (0.5, 1.5)
"""Each pilot shape runs twice, for these multiples of its share of the pilots' time."""
_FEWEST_STEPS = 30
_TRAINED_PART = 0.95
"""Part of the time for training steps; preparation, validations and checkpoints take the rest."""
_FEWEST_TOKENS_PER_PARAMETER = 1.0
"""A size that would be trained on fewer tokens is left out, and so are all larger ones."""


@dataclass(frozen=True)
class Candidate:
    """A model size, and its expected result: ``expected`` after ``tokens``, in ``epochs`` passes.

    ``settings`` has the planned time as its horizon, or passes if the time is too long for the text.
    """

    settings: Settings
    params: int
    step_seconds: float
    tokens: float
    epochs: float
    expected: Expectation
    bits_per_byte: float

    @property
    def tokens_per_second(self) -> float:
        return self.settings.tokens_per_step / self.step_seconds


@dataclass(frozen=True)
class NightPlan:
    """Candidates by size, the ``best`` one, and the pilot runs that the predictions are based on."""

    seconds: float
    candidates: list[Candidate]
    best: Candidate
    pilots: list[Observation]
    misfit_nats: float
    text_lost: float
    """The share of the text that the tokenizer loses: above 0, bits per byte cannot be compared."""
    most_passes: float
    """Nothing is predicted beyond so many passes over the text: the pilots saw no more, and the law does not
    know overfitting."""


@dataclass(frozen=True)
class _MeasuredSize:
    settings: Settings
    params: int
    step_seconds: float


def plan_night(base: Settings, seconds: float, *, show: Listener, block_is_wish: bool = False) -> NightPlan:
    """Measure the sizes, run the pilots, and predict the loss of each size.

    Args:
        base: all settings but the model's size, its learning rates and the horizon.
        seconds: the planned time.
        block_is_wish: as in :func:`cpulm.data.prepare.prepare_fitting`.

    Raises:
        SettingsError: if the time is too short for pilots.
        StoppedError: if a stop is requested.
        CpulmError: if the data cannot be used.
    """
    if seconds < SHORTEST_SECONDS:
        raise SettingsError(
            f"--max-time {format_duration(seconds)} is too short for a plan: the pilots alone take a minute",
            f"give {format_duration(SHORTEST_SECONDS)} or more, or see `cpulm benchmark --all`",
        )
    machine = read_machine()
    runtime = choose_runtime(base.runtime, machine, base.model)
    with StopRequest() as stop:
        tokens, base = prepare_fitting(base, emit=show, should_stop=stop, block_is_wish=block_is_wish)
        sizes = _measured_sizes(base, tokens, runtime, machine, seconds, show, stop)
    pilots = _run_pilots(sizes[:_PILOT_SHAPES], tokens, seconds, show)
    law = ScalingLaw(pilots)
    # One pass repeats nothing, so its end may be predicted from its beginning.
    most_passes = max(1.0, *(pilot.tokens / pilot.unique_tokens for pilot in pilots))
    candidates = [_candidate(size, tokens, seconds, law, most_passes) for size in sizes]
    best = min(candidates, key=lambda candidate: candidate.expected.loss)
    return NightPlan(seconds, candidates, best, pilots, law.misfit_nats, tokens.lost_share, most_passes)


def with_shape(base: Settings, shape: tuple[int, int, int], seconds: float) -> Settings:
    """Return ``base`` with this shape, its learning rates, and ``seconds`` as the horizon."""
    layers, width, heads = shape
    model = changed(
        base.model, n_layer=layers, n_embd=width, n_head=heads, n_kv_head=None, head_dim=None, n_inner=None
    )
    none = {"steps": None, "epochs": None, "tokens": None, "until": None}
    # AdamW's rate falls as the width grows, as in the presets; Muon's is the same for every width.
    lr = round(base.train.lr * base.model.n_embd / width, 5)
    return changed(base, model=model, train=changed(base.train, lr=lr, max_time=seconds, **none))


def _measured_sizes(
    base: Settings,
    tokens: TokenFolder,
    runtime: Runtime,
    machine: Machine,
    seconds: float,
    show: Listener,
    stop: StopRequest,
) -> list[_MeasuredSize]:
    sizes: list[_MeasuredSize] = []
    for done, shape in enumerate(SHAPES):
        if stop():
            raise StoppedError("while planning; nothing was written", "run the command again")
        show(Progress(stage="measuring sizes", done=done, total=len(SHAPES), unit="sizes"))
        settings = with_shape(base, shape, seconds)
        try:
            available = requirements.memory_for_run(machine)
            requirements.check_memory(settings, tokens.vocab_size, arithmetic_of(runtime), available)
        except ResourceError:
            break
        step = measure_step(build_parts(settings, tokens, runtime), runtime, settings.train)
        params = count(settings.model, tokens.vocab_size).total
        trained = _TRAINED_PART * seconds / step * settings.tokens_per_step
        if trained < _FEWEST_TOKENS_PER_PARAMETER * params and len(sizes) >= _PILOT_SHAPES:
            break
        sizes.append(_MeasuredSize(settings, params, step))
    show(Progress(stage="measuring sizes", done=len(SHAPES), total=len(SHAPES), unit="sizes", finished=True))
    if len(sizes) < _PILOT_SHAPES:
        raise ResourceError("not enough memory for the pilots", "close other programs")
    return sizes


def _run_pilots(
    sizes: list[_MeasuredSize], tokens: TokenFolder, seconds: float, show: Listener
) -> list[Observation]:
    least, most = _PILOT_SECONDS
    share = min(max(seconds * _PILOT_PART, least), most) / (len(sizes) * sum(_LENGTHS))
    pilots = [(size, length * share) for size in sizes for length in _LENGTHS]
    return [
        _run_pilot(size, limit, tokens, f"pilot {number} of {len(pilots)}", show)
        for number, (size, limit) in enumerate(pilots, 1)
    ]


def _run_pilot(
    size: _MeasuredSize, seconds: float, tokens: TokenFolder, stage: str, show: Listener
) -> Observation:
    """Train a size for about ``seconds`` with a complete schedule, in a temporary folder."""
    steps = max(_FEWEST_STEPS, round(seconds / size.step_seconds))
    none = {"max_time": None, "steps": steps, "target_loss": None, "patience": None}
    settings = changed(
        size.settings,
        data=changed(size.settings.data, source=[str(tokens.path)], val_source=[], vocab_size=None),
        train=changed(size.settings.train, **none),
        eval=changed(size.settings.eval, every=steps, batches=12),
        sample=changed(size.settings.sample, max_new_tokens=0),
        checkpoint=changed(size.settings.checkpoint, keep=0),
        runtime=changed(size.settings.runtime, compile="off"),
    )
    losses: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            show(Progress(stage=stage, done=event.step, total=steps, unit="steps"))
        elif isinstance(event, Validated):
            losses.append(event.loss)

    with tempfile.TemporaryDirectory(prefix="cpulm-pilot-") as folder:
        outcome = runs.train(
            settings, Path(folder) / "run", show=listen, record=lambda _: nullcontext(lambda _: None)
        )
    show(Progress(stage=stage, done=steps, total=steps, unit="steps", finished=True))
    if outcome.reason == "stopped":
        raise StoppedError("while planning; nothing was written", "run the command again")
    trained = steps * settings.tokens_per_step
    return Observation(size.params, trained, len(tokens.train), losses[-1])


def _candidate(
    size: _MeasuredSize, tokens: TokenFolder, seconds: float, law: ScalingLaw, most_passes: float
) -> Candidate:
    """Predict a size's loss at the end of the time, or after ``most_passes`` if the time allows more.

    If the time allows more passes than repeated text is good for, the settings end after those.
    """
    unique, settings = len(tokens.train), size.settings
    in_time = _TRAINED_PART * seconds / size.step_seconds * settings.tokens_per_step
    enough = max(MOST_PASSES, most_passes)
    if in_time > enough * unique:
        settings = changed(settings, train=changed(settings.train, max_time=None, epochs=round(enough, 2)))
    trained = min(in_time, most_passes * unique)
    expected = law.predict(size.params, trained, unique)
    return Candidate(
        settings=settings,
        params=size.params,
        step_seconds=size.step_seconds,
        tokens=trained,
        epochs=trained / unique,
        expected=expected,
        bits_per_byte=expected.loss / math.log(2) / tokens.bytes_per_token,
    )
