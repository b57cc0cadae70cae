"""Summarizes a run in words."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cpulm.analysis.report import Fact, Figures
from cpulm.events import END_REASONS, RunStarted
from cpulm.runlog.run_log import RunLog
from cpulm.runs.run_states import RUN_STATES
from cpulm.runs.status import RunStatus
from cpulm.units import format_bits_per_byte, format_bytes, format_count, format_duration


def facts(status: RunStatus, figures: Figures, log: RunLog) -> tuple[Fact, ...]:
    """Return one line for each known fact."""
    return tuple(_facts(status, figures, log))


def _facts(status: RunStatus, figures: Figures, log: RunLog) -> Iterator[Fact]:
    started = log.started
    yield Fact("state", status.state, _why(status, log))
    if figures.preset is not None:
        yield Fact("preset", figures.preset)
    if started is not None:
        yield Fact("model", *_model(started))
        yield Fact("machine", *_machine(started))
        if started.precision_reason:
            yield Fact("precision", started.precision, started.precision_reason)
    yield Fact("progress", *_progress(status, figures))
    yield Fact("time", *_time(figures))
    if figures.best_loss is not None:
        yield Fact(
            "best",
            f"loss {figures.best_loss:.4f}",
            f"{format_bits_per_byte(figures.best_bits_per_byte or 0.0, figures.text_lost)}, "
            f"on the validation split at step {figures.best_step:,}{_average(figures)}",
        )
        if started is not None and started.generations > 1:
            yield Fact("generations", str(started.generations), _generations(log))
    elif figures.last_loss is not None:
        yield Fact("training loss", f"{figures.last_loss:.4f}", "not validated yet")
    if figures.tokens_per_second is not None:
        yield Fact("throughput", f"{format_count(figures.tokens_per_second)} tok/s", _arithmetic(figures))
    if figures.peak_process_bytes:
        yield Fact("memory", format_bytes(figures.peak_process_bytes), "peak of the process")
    if log.damaged_lines and status.state not in ("running", "restarting"):
        lines = f"{log.damaged_lines} line{'s' * (log.damaged_lines != 1)}"
        yield Fact("damage", f"{lines} of the log cannot be read", "skipped")


def _average(figures: Figures) -> str:
    """Which weights were the best, with the loss of the others; empty if the run kept no average."""
    trained, averaged = figures.best_trained_loss, figures.best_averaged_loss
    if trained is None or averaged is None:
        return ""
    if averaged < trained:
        return f", of the averaged weights (trained weights: {trained:.4f})"
    return f", of the trained weights (averaged weights: {averaged:.4f})"


def _generations(log: RunLog) -> str:
    """The best loss of each: ``best losses 4.6326, 4.6058``."""
    best: dict[int, float] = {}
    for event in log.validations:
        best[event.generation] = min(event.loss, best.get(event.generation, event.loss))
    return f"best losses {', '.join(f'{loss:.4f}' for loss in best.values())}"


def _why(status: RunStatus, log: RunLog) -> str:
    finished = log.finished
    if finished is None or status.state in ("running", "restarting", "crashed", "new"):
        return RUN_STATES[status.state]
    words = END_REASONS[finished.reason]
    return "" if words == status.state else words


def _model(started: RunStarted) -> tuple[str, str]:
    return f"{format_count(started.params_total)} parameters", (
        f"{format_count(started.params_non_embedding)} without embeddings, "
        f"vocabulary {started.vocab_size:,}, context {started.block_size:,}"
    )


def _machine(started: RunStarted) -> tuple[str, str]:
    how = "compiled" if started.compiled else "eager"
    threads = f"{started.threads} thread{'s' * (started.threads != 1)}"
    device = "" if started.device == "cpu" else f"{started.device}, "
    return started.device_name or started.device, f"{device}{started.precision}, {how}, {threads}"


def _arithmetic(figures: Figures) -> str:
    """Return the throughput in FLOP/s, and its share of the machine's peak."""
    if figures.flops_per_second is None:
        return ""
    done = f"{figures.flops_per_second / 1e9:.1f} GFLOP/s while training"
    peak = figures.peak_flops_per_second
    if not peak:
        return done
    return f"{done}: {figures.flops_per_second / peak:.0%} of the machine's {peak / 1e9:.0f} in fp32"


def _progress(status: RunStatus, figures: Figures) -> tuple[str, str]:
    of = f" of {figures.horizon_steps:,}" if figures.horizon_steps else ""
    share = "" if status.progress is None else f" ({min(1.0, max(0.0, status.progress)):.0%})"
    text, trained = f"step {figures.steps:,}{of}{share}", f"{format_count(figures.tokens)} tokens"
    if not figures.train_tokens:
        return text, trained
    there = f"the {format_count(figures.train_tokens)} of the training text"
    if status.generations > 1:
        there += " by the newest generation"
    if figures.epochs > 1:
        return text, f"{trained}, {figures.epochs:.1f} times {there}"
    return text, f"{trained}, {figures.epochs:.1%} of {there}"


def _time(figures: Figures) -> tuple[str, str]:
    trained = f"{format_duration(figures.seconds)} of training"
    if figures.began is None or figures.seen is None:
        return trained, ""
    begin, end = (time.localtime(moment) for moment in (figures.began, figures.seen))
    same_day = begin[:3] == end[:3]
    until = time.strftime("%H:%M" if same_day else "%a %d %b %H:%M", end)
    return trained, f"from {time.strftime('%a %d %b %H:%M', begin)} to {until}"
