"""Plans a training run of a given duration for this machine and text, within seconds.

A step of a few sizes of model is measured, which gives the tokens that each can be trained on in that time.
The measured law (:mod:`cpulm.estimate.learning_law`) says which of them will have the lowest loss, and the
recipe (:mod:`cpulm.estimate.recipe`) how to train it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cpulm.benchmark.run_plan import PREPARED_BYTES_PER_SECOND, Candidate, RunPlan, prepared_seconds
from cpulm.cache_dir import expand_home
from cpulm.data.text_size import text_size
from cpulm.data.tokenfile import is_token_folder, read_meta
from cpulm.data.vocabulary import given_tokenizer
from cpulm.errors import ResourceError, SettingsError, StoppedError
from cpulm.estimate import requirements
from cpulm.estimate.learning_law import USUAL_TEXT, measured_law
from cpulm.estimate.memory import expected_arithmetic
from cpulm.estimate.recipe import (
    SHAPES,
    bytes_per_token,
    most_passes,
    recipe,
    shape_settings,
    splits_tokens,
)
from cpulm.estimate.requirements import generations_cost
from cpulm.events import Listener, Progress
from cpulm.execution.adaptive_threads import measured_as_in_a_run
from cpulm.execution.runtime import Runtime, choose_runtime
from cpulm.execution.step_timing import time_update
from cpulm.model.counts import count, flops_per_token
from cpulm.settings import Settings, changed
from cpulm.system.cpu_use import OthersUse
from cpulm.system.machine import Machine, read_machine
from cpulm.training.build import build_random_parts
from cpulm.units import format_duration

Make = Callable[[Mapping[str, Any]], Settings]
"""Makes a run's settings of planned values by dotted key; what the user gave comes before them."""

_START_SECONDS, _TRAINED_PART = 5.0, 0.88
"""Before the first update, and the part of the rest in updates: validations and checkpoints take time too."""
MOST_TOKENS_PER_PARAMETER = 20.0
"""A size that would be trained on more tokens is left out: a larger one is better (Hoffmann et al.), which
the law cannot know, because it was fitted to fewer."""
GENERATIONS = 2
"""Trainings, if the time is enough: a third one gained nothing."""
_WORTH_A_SECOND = 1.5
"""The time is enough if one training would have so many times the passes that the model bears."""
_SHORTEST_GENERATION = 30.0
"""Seconds: to begin another one takes a few."""
_BEYOND_MEASURED = 2.5
"""Sizes are planned up to so many times the largest one that the law was fitted to."""
_MOST_PARAMETERS_PER_BYTE = 18.0
"""Of text, without embeddings: no more were measured (4 layers, 192 wide, on 100 kB, which was no better than
2 layers, 128 wide). The law alone would train 11 M parameters on a text of 10 kB."""
_FEWEST_TOKENS = 1e5
"""That a generation is trained on, in no more passes than were measured: 2 layers, 64 wide, had 3.44 bits per
byte of 10 kB of plays after 40 updates of 1,024 tokens, and 3.25 after 70 of 100."""
_PREPARED_PART = 0.1
"""Of the time, at most, for that: of a text that would take longer, a share is planned with."""
_NO_TIME, _NO_TIME_PART = (0.5, 5.0), 0.02
"""The fewest and the most seconds, and the part of the time between them, in which a text is tokenized in no
time: then all of it is used."""
_TOKENIZED_TIMES = 4.0
"""What is tokenized is about so many times what the run trains on: it may be resumed with more time."""
_HOPELESS = 2.0
"""So many times the time is too long to read a text, even if the estimate is wrong."""
_TIMED_TOKENS, _TIMED_SECONDS, _TIMED_UPDATES = 1024, 1.0, 3
"""Of an update: the tokens at first, then as many as take so long; and how many updates, of which the first
only warms up."""
_FIRST_MEASURED, _MOST_MEASURED = 1, 5
"""The place in the table of shapes of the first size that is measured, and how many are measured at most."""
_MEASURING_PART = 0.05
"""Of the time: after that no other size is measured. Beside other programs a few sizes took four minutes."""


@dataclass(frozen=True)
class Elsewhere:
    """A machine and a text that are not here.

    Attributes:
        rates: operations a second of each size, by its place in the table of shapes.
        text_bytes: of training text.
    """

    machine: Machine
    rates: Mapping[int, float]
    text_bytes: float


def seconds_given(settings: Settings) -> float | None:
    """The time that a run with these settings has; None if its horizon is not a time."""
    if settings.train.until is not None:
        return max(0.0, datetime.fromisoformat(settings.train.until).timestamp() - time.time())
    return settings.train.max_time


class Planner:
    """Chooses all settings of a run that the user did not give.

    Args:
        make: as :data:`Make`.
        elsewhere: what to plan for; None: this machine, and the text of the settings.

    Raises:
        SettingsError: if the horizon is not a time, or what was given does not fit together.
        CpulmError: if the text cannot be used.
    """

    def __init__(
        self,
        make: Make,
        *,
        show: Listener,
        should_stop: Callable[[], bool],
        elsewhere: Elsewhere | None = None,
    ) -> None:
        given = make({})
        seconds = seconds_given(given)
        if seconds is None:
            raise SettingsError("the preset auto needs a time", "give --max-time 30m or --until 07:00")
        self.seconds = seconds
        self._make_settings, self._show, self._should_stop = make, show, should_stop
        self._share: dict[str, Any] = {}
        self._rates: dict[int, float] = {}
        self._vocab_size: int | None = None
        self._has_merges = True
        if elsewhere is not None:
            self._machine, self.text_bytes, self.share = elsewhere.machine, elsewhere.text_bytes, 1.0
            self._rates |= elsewhere.rates
            self._can_be_shared, self._read_seconds = False, 0.0
            return
        size = text_size(given.data, show, should_stop)
        self.text_bytes, self.share = max(1.0, size.training_bytes), given.data.share
        self._can_be_shared, self._read_seconds = not size.is_tokenized, size.read_seconds
        folder = expand_home(given.data.source[0])
        if is_token_folder(folder):
            meta = read_meta(folder)
            self._vocab_size, self._has_merges = meta["vocab_size"], meta["tokenizer"] == "bpe"
        elif (tokenizer := given_tokenizer(given.data)) is not None:
            self._vocab_size = tokenizer.vocab_size
            self._has_merges = bool(tokenizer.parts["model"].get("merges"))
        self._use_at_most(seconds * _PREPARED_PART * PREPARED_BYTES_PER_SECOND, math.floor)
        reading = (1.0 - self.share) * self._read_seconds
        if reading > _HOPELESS * seconds:
            raise SettingsError(
                f"reading the text takes about {format_duration(reading)}, and the run has "
                f"{format_duration(seconds)}",
                "give more time, or less text: of plain text, JSON lines and Parquet only a part is read",
            )
        self._machine = read_machine()
        self._others = OthersUse()

    def plan(self) -> RunPlan:
        """Measure the best size and its neighbours until no size is expected to be better, or the time for it
        is over.

        Raises:
            ResourceError: if not even the smallest model fits into the memory.
            StoppedError: if a stop is requested.
        """
        began = time.monotonic()
        if not self._rates:
            self._measure(_FIRST_MEASURED)
        while True:
            candidates = self._candidates()
            best = _best(_judged(candidates))
            near = [p for p in (best, best - 1, best + 1) if p in candidates and p not in self._rates]
            enough = best in self._rates and len(self._rates) >= _MOST_MEASURED
            if not near or enough or time.monotonic() - began > _MEASURING_PART * self.seconds:
                break
            self._measure(near[0])
        self._progress(finished=True)
        self._use_at_most(_TOKENIZED_TIMES * candidates[best].passes * self.text_bytes, math.ceil)
        candidates = _judged(self._candidates())
        best = best if best in candidates else _best(candidates)
        different = {one.params: one for one in candidates.values()}  # the user may have given the shape
        different[candidates[best].params] = candidates[best]
        return RunPlan(
            self.seconds,
            self.text_bytes,
            self.share,
            self._read_seconds,
            list(different.values()),
            candidates[best],
        )

    def _use_at_most(self, text_bytes: float, rounded: Callable[[float], int]) -> None:
        """Plan with a share of the text that has so many bytes, unless the whole is tokenized in no time.

        The share is rounded to a power of two, so that a plan made again, by another measured speed, most
        often takes the tokens that are there.
        """
        part = text_bytes / self.text_bytes
        no_time = max(_NO_TIME[0], min(_NO_TIME[1], _NO_TIME_PART * self.seconds))
        if self._can_be_shared and part < 1 and prepared_seconds(self.text_bytes) > no_time:
            self._share = {"data.share": 2.0 ** min(0, rounded(math.log2(self.share * part)))}
            used = self._make({}).data.share
            self.text_bytes, self.share = self.text_bytes * used / self.share, used

    def _make(self, planned: Mapping[str, Any]) -> Settings:
        return self._make_settings({**self._share, **planned})

    def settings_for(self, place: int, tokens: float) -> Settings:
        """The settings of a size that is trained on so many tokens; the horizon is the time."""
        shape = self._shape(place)
        shaped, size = self._make(shape), self.text_bytes
        once = self._make(shape | recipe(shaped, size, tokens, 1.0))
        passes = min(tokens * bytes_per_token(once.data) / size, measured_law().most_passes)
        planned = recipe(shaped, size, tokens, passes)
        if self._vocab_size is not None:
            planned["data.vocab_size"] = self._vocab_size
        return self._make(shape | planned | ({} if self._has_merges else {"train.bpe_dropout": 0.0}))

    def _shape(self, place: int) -> dict[str, Any]:
        """The shape; with fewer heads if they do not divide a width that the user gave."""
        shape = shape_settings(SHAPES[place])
        for heads in range(shape["model.n_head"], 1, -1):
            try:
                self._make(shape | {"model.n_head": heads})
            except SettingsError:
                continue
            return shape | {"model.n_head": heads}
        return shape | {"model.n_head": 1}

    def _candidates(self) -> dict[int, Candidate]:
        """The sizes that fit into the memory and that the law can judge, by their place."""
        found: dict[int, Candidate] = {}
        for place in range(len(SHAPES)):
            try:
                found[place] = self._candidate(place)
            except ResourceError:
                if not found:
                    raise
                break
            most = _BEYOND_MEASURED * measured_law().sizes[1]
            most = min(most, _MOST_PARAMETERS_PER_BYTE * self.text_bytes)
            if place and found[place].non_embedding > most:
                del found[place]
                break
        return found

    def _candidate(self, place: int) -> Candidate:
        law = measured_law()
        left = self.seconds - _START_SECONDS
        left -= prepared_seconds(self.text_bytes, self.share, self._read_seconds)
        seconds = max(self.seconds / 4, left * _TRAINED_PART)
        rate = self._rates[min(self._rates, key=lambda known: abs(known - place))]
        settings = self.settings_for(place, seconds * rate / _flops(self._make(self._shape(place))))
        in_time, most = seconds * rate / _flops(settings), self._most_tokens(settings)
        is_enough = in_time >= _WORTH_A_SECOND * most and seconds >= GENERATIONS * _SHORTEST_GENERATION
        planned = GENERATIONS if is_enough else 1
        generations = self._make({"train.generations": planned}).train.generations
        if generations == 1:
            most = self._most_tokens(settings, _WORTH_A_SECOND)
        if in_time > most:
            settings = self.settings_for(place, most)
            in_time = seconds * rate / _flops(settings)
        a_pass = self.text_bytes / bytes_per_token(settings.data)
        passes = self._make({"train.max_passes": round(most / a_pass, 1)}).train.max_passes
        most = min(most, a_pass * (passes or math.inf))
        train = changed(settings.train, generations=generations, max_passes=passes)
        settings = changed(settings, train=train)
        vocab_size = vocab_size_of(settings)
        needed = expected_arithmetic(settings, self._machine)
        requirements.check_memory(settings, vocab_size, needed, requirements.memory_for_run(self._machine))
        in_time /= generations_cost(generations)
        tokens = min(in_time, most)
        counts = count(settings.model, vocab_size)
        return Candidate(
            place=place,
            settings=settings,
            params=counts.total,
            non_embedding=counts.non_embedding,
            step_seconds=settings.tokens_per_step * _flops(settings) / rate,
            tokens=tokens,
            passes=tokens / a_pass,
            spare_seconds=max(0.0, left - seconds * tokens / in_time / _TRAINED_PART),
            relative_loss=law.expected(
                counts.non_embedding, tokens / a_pass * self.text_bytes, self.text_bytes, USUAL_TEXT
            ).loss,
        )

    def _most_tokens(self, settings: Settings, times: float = 1.0) -> float:
        """The most tokens to train on: so many times the passes that a model bears, if they were measured."""
        text_tokens = self.text_bytes / bytes_per_token(settings.data)
        params = count(settings.model, vocab_size_of(settings)).non_embedding
        splits = self._has_merges and splits_tokens(settings)
        most = most_passes(params, text_tokens, splits=splits)
        most = max(times * most, _FEWEST_TOKENS / text_tokens)
        return min(measured_law().most_passes, most) * text_tokens

    def _measure(self, place: int) -> None:
        """Measure the operations a second of a size, by updates of as many rows as a moment allows.

        Few rows are slower for each token: the weights are read, and in int8 rounded, as often as for many.
        """
        settings = self.settings_for(place, 1e6)
        runtime = choose_runtime(settings.runtime, self._machine, settings.model)
        rows, timed = settings.train.micro_batch_size, 0
        affordable = max(1, _TIMED_TOKENS // settings.model.block_size)
        while timed < min(rows, affordable):
            if self._should_stop():
                raise StoppedError("while planning; nothing was written", "run the command again")
            self._progress(finished=False)
            timed = min(rows, affordable)
            step = self._step_seconds(settings, timed, runtime)
            affordable = int(rows * _TIMED_SECONDS / step)
        self._rates[place] = _flops(settings) * settings.tokens_per_step / step

    def _step_seconds(self, settings: Settings, timed_rows: int, runtime: Runtime) -> float:
        """Seconds of an update, from some with fewer rows."""
        train = settings.train
        small = changed(settings, train=changed(train, micro_batch_size=timed_rows))
        parts = build_random_parts(small, vocab_size_of(small), runtime)
        more = train.micro_batch_size / timed_rows

        def mean() -> float:
            times = [time_update(parts, runtime, small.train, number) for number in range(_TIMED_UPDATES)]
            return statistics.mean(
                sum(t if part == "optimizer" else t * more for part, t in one.items()) for one in times[1:]
            )

        return measured_as_in_a_run(mean, runtime, others=self._others.newest)

    def _progress(self, *, finished: bool) -> None:
        done = len(self._rates)
        self._show(Progress(stage="measuring sizes", done=done, total=None, unit="sizes", finished=finished))


def _judged(candidates: dict[int, Candidate]) -> dict[int, Candidate]:
    """Those that are not too small for the time; the largest if all are."""
    enough = {
        place: one
        for place, one in candidates.items()
        if one.tokens <= MOST_TOKENS_PER_PARAMETER * one.non_embedding
    }
    return enough or {max(candidates): candidates[max(candidates)]}


def _best(candidates: Mapping[int, Candidate]) -> int:
    """The place of the size with the lowest expected loss."""
    return min(candidates, key=lambda place: candidates[place].relative_loss)


def vocab_size_of(settings: Settings) -> int:
    """The entries of a vocabulary that is not made yet."""
    return settings.data.vocab_size or 257


def _flops(settings: Settings) -> float:
    """Operations for each trained token."""
    return flops_per_token(settings.model, vocab_size_of(settings))
