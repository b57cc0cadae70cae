"""What is written into a run's folder while it trains, and at its end: its log and its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from cpulm.errors import CpulmError
from cpulm.events import Event, Listener
from cpulm.run_dir import RunDir

if TYPE_CHECKING:
    from cpulm.training.run import Recorder, RecordStart

Say = Callable[[str], None]


@contextmanager
def _log_of(begins: RecordStart, warn: Say) -> Iterator[Listener]:
    """The listeners that write into the run's folder; events after its start are deleted first."""
    from cpulm.runlog.truncate import truncate_after
    from cpulm.runlog.writer import MetricsWriter

    run = begins.run
    truncate_after(run.metrics, begins.step, begins.saves)
    with ExitStack() as stack:
        listeners: list[Listener] = [stack.enter_context(MetricsWriter(run.metrics, warn))]
        if begins.settings.log.tensorboard:
            from cpulm.settings import settings_yaml
            from cpulm.ui.tensorboard import tensorboard_listener

            settings = settings_yaml(begins.settings)
            listeners.append(stack.enter_context(tensorboard_listener(run.tensorboard, settings)))

        def emit(event: Event) -> None:
            for listener in listeners:
                listener(event)

        yield emit


@contextmanager
def page_at_the_end(say: Say, warn: Say) -> Iterator[Recorder]:
    """Open a run's log; when the run has ended, for any reason, write its page.

    Args:
        say, warn: are told where the page is, and what could not be written.
    """
    begun: list[RecordStart] = []

    @contextmanager
    def record(begins: RecordStart) -> Iterator[Listener]:
        begun.append(begins)
        with _log_of(begins, warn) as listener:
            yield listener

    try:
        yield record
    except CpulmError as error:
        from cpulm.system.allocator import release_frames

        release_frames(error)  # they hold the model, which would stand in memory beside what draws the page
        raise
    finally:
        if begun and begun[-1].settings.log.report:
            _write_page(begun[-1].run, say, warn)


def _write_page(run: RunDir, say: Say, warn: Say) -> None:
    from cpulm.overnight.report_page import write_report

    problem = write_report(run)
    if problem:
        warn(f"{problem} (`cpulm train --set log.report=false` turns it off)")
    elif run.report.is_file():
        say(f"report: {run.report}")
