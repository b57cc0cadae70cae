"""What ``train`` and ``resume`` do if a run has several processes: start them, join them, let one show."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import ValidationError

from cpulm.distributed.begun_run import begun_run, keep_begun
from cpulm.errors import DataError
from cpulm.events import Event, Listener
from cpulm.run_dir import RunDir
from cpulm.settings.distributed_settings import DistributedSettings

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cpulm.distributed.world import World
    from cpulm.training.run import Recorder, RecordStart


def launch_if_wanted(settings: DistributedSettings) -> None:
    """Run this very command in several processes if ``settings`` want that and this is not one of them.

    Raises:
        typer.Exit: with the exit code of the processes.
    """
    is_worker = "RANK" in os.environ
    if settings.needs_launcher or is_worker:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # read once, when torch is loaded
    if not settings.needs_launcher or is_worker:
        return
    from cpulm.distributed.launch import launch
    from cpulm.ui.console import say

    raise typer.Exit(launch(sys.argv[1:], settings, say))


def restarted(out: Path | None, *, resume: bool) -> tuple[Path | None, bool]:
    """Return ``--out`` and ``--resume`` as they are after a process was lost: the run that has begun."""
    begun = begun_run()
    if begun is not None:
        return begun, True
    return out, resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def stored(path: Path, changes: Mapping[str, Any]) -> DistributedSettings:
    """The settings of the processes of the run at ``path``, with ``changes`` by dotted key.

    Stored ones that cannot be used, such as those of another version, are left out as a whole.

    Raises:
        SettingsError: if a change is wrong.
    """
    from cpulm.runs.stored_settings import read_settings
    from cpulm.settings.resolve_settings import validate

    given = {key.partition(".")[2]: value for key, value in changes.items() if key.startswith("distributed.")}
    given = {key: value for key, value in given.items() if value is not None}
    changed = validate({"distributed": given}).distributed
    try:
        kept = read_settings(RunDir(path if path.is_dir() else path.parent)).get("distributed")
        return DistributedSettings.model_validate({**kept, **given}) if isinstance(kept, dict) else changed
    except (DataError, ValidationError):
        return changed


@dataclass(frozen=True)
class Watched:
    """A process of a run: ``world``, what it records and shows, and whether the run is resumed."""

    world: World
    record: Recorder
    show: Listener
    resumes: bool

    @property
    def leave(self) -> Callable[[], None] | None:
        """What restores the terminal."""
        return getattr(self.show, "leave", None)


@contextmanager
def watching(run: Path | None = None, *, json: bool, headless: bool) -> Iterator[Watched]:
    """Join the run's processes; the main one shows the run and records it, the others do nothing of that.

    Args:
        run: the run to resume; None for a new one. What the main process has counts.
    """
    from cpulm.api.recording import page_at_the_end
    from cpulm.distributed.join import joined
    from cpulm.ui.console import say, show_warning
    from cpulm.ui.watch import choose_mode, watch

    with ExitStack() as stack:
        world = stack.enter_context(joined(has_run=run is not None and run.exists()))
        resumes = bool(world.share(run is not None))
        if not world.is_main:
            yield Watched(world, _recorded_elsewhere, _nobody, resumes)
            return
        write = stack.enter_context(page_at_the_end(say, show_warning))
        history = None if run is None else RunDir(run if run.is_dir() else run.parent).metrics
        show = stack.enter_context(watch(choose_mode(json=json, headless=headless), history))

        def record(begins: RecordStart) -> AbstractContextManager[Listener]:
            keep_begun(begins.run.path)
            return write(begins)

        yield Watched(world, record, show, resumes)


def _recorded_elsewhere(begins: RecordStart) -> AbstractContextManager[Listener]:  # noqa: ARG001
    return nullcontext(_nobody)


def _nobody(event: Event) -> None:
    """Nobody listens."""
