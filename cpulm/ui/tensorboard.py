"""A run's curves, samples and settings for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpulm.errors import SettingsError
from cpulm.events import (
    Event,
    LayerStats,
    Listener,
    MachineSampled,
    RolledBack,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
)
from cpulm.ui.curve import Pace
from cpulm.ui.terminal_text import harmless

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

_FLUSH_SECONDS = 10
_QUEUED_EVENTS = 1000


def require_tensorboard() -> None:
    """Raise SettingsError if the package ``tensorboard`` is not installed."""
    try:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "--tensorboard needs the package tensorboard, which is not installed",
            "pip install 'cpulm[tensorboard]'",
        ) from error


@contextmanager
def tensorboard_listener(folder: Path, settings: str = "") -> Iterator[Listener]:
    """Yield a listener that writes TensorBoard's event files into ``folder``.

    It writes steps, validations, samples, machine states and layer statistics; a resumed run makes it
    drop what was written after the step from which it continues.

    Args:
        settings: the run's settings as text, shown beside its samples.

    Raises:
        SettingsError: if the package ``tensorboard`` is not installed, or cannot write into ``folder``.
    """
    require_tensorboard()
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise SettingsError(
            f"TensorBoard cannot write into {folder}: the name is not UTF-8", "choose another --out"
        ) from None
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder), max_queue_size=_QUEUED_EVENTS, flush_secs=_FLUSH_SECONDS)
    try:
        yield _Curves(writer, settings)
    finally:
        writer.close()


class _Curves:
    """Turns events into TensorBoard's summaries. ``write`` receives one event message."""

    def __init__(self, writer: EventFileWriter, settings: str) -> None:
        self._write: Callable[[Any], None] = writer.add_event
        self._settings = settings
        self._newest = 0
        self._pace = Pace()
        self._tokens: int | None = None
        self._tokens_per_step = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Validated):
            mark = "_not_comparable" if event.text_lost else ""  # its tokenizer loses text
            values = {
                "loss/validation": event.loss,
                f"validation/bits_per_byte{mark}": event.bits_per_byte,
                "validation/perplexity": event.perplexity,
            }
            if event.trained_loss is not None and event.averaged_loss is not None:
                values["loss/validation_trained"] = event.trained_loss
                values["loss/validation_averaged"] = event.averaged_loss
            self._scalars(event.step, event.time, values)
        elif isinstance(event, SampleMade):
            self._text("sample", event.prompt + event.text, event.step, event.time)
        elif isinstance(event, MachineSampled):
            self._machine(event)
        elif isinstance(event, LayerStats):
            self._layers(event)
        elif isinstance(event, RolledBack):
            self._tokens, self._newest = None, event.to_step
            self._forget_after(event.to_step, event.time)

    def _start(self, event: RunStarted) -> None:
        self._tokens_per_step, self._newest = event.tokens_per_step, event.step
        if event.step:
            self._forget_after(event.step, event.time)
        if self._settings:
            self._text("settings", self._settings, event.step, event.time)

    def _forget_after(self, step: int, wall_time: float) -> None:
        """Make TensorBoard drop what was written for later steps until now."""
        from tensorboard.compat.proto.event_pb2 import Event as Message
        from tensorboard.compat.proto.event_pb2 import SessionLog

        status = SessionLog(status=SessionLog.START)
        self._write(Message(wall_time=wall_time, step=step + 1, session_log=status))

    def _step(self, event: StepDone) -> None:
        tokens = self._tokens_per_step if self._tokens is None else event.tokens - self._tokens
        self._tokens, self._newest = event.tokens, event.step
        self._pace = self._pace.add(event.step_seconds, tokens)
        values = {
            "loss/train": event.loss,
            **({} if event.teacher_divergence is None else {"loss/teacher_kl": event.teacher_divergence}),
            "train/learning_rate": event.lr,
            **({} if event.muon_lr is None else {"train/muon_learning_rate": event.muon_lr}),
            "train/gradient_norm": event.grad_norm,
            "train/tokens_per_second": self._pace.tokens_per_second or math.nan,
        }
        self._scalars(event.step, event.time, values)

    def _machine(self, event: MachineSampled) -> None:
        """Write the machine's state at the newest step, because the event has none."""
        values = {
            "machine/cpu_percent": event.cpu_percent,
            "machine/process_cpu_percent": event.process_cpu_percent,
            "machine/process_mib": event.process_bytes / 2**20,
        }
        if event.cpu_temperature is not None:
            values["machine/cpu_temperature"] = event.cpu_temperature
        self._scalars(self._newest, event.time, values)

    def _layers(self, event: LayerStats) -> None:
        measures = {
            "weight_norm": event.weight_norms,
            "grad_norm": event.grad_norms,
            "update_ratio": event.update_ratios,
        }
        values = {
            f"{measure}/{name}": value
            for measure, numbers in measures.items()
            for name, value in zip(event.names, numbers, strict=True)
        }
        self._scalars(event.step, event.time, values)

    def _scalars(self, step: int, wall_time: float, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Message
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(Message(wall_time=wall_time, step=step, summary=summary))

    def _text(self, name: str, text: str, step: int, wall_time: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Message
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        # Four blanks make the text a code block in TensorBoard's Markdown.
        block = "\n".join(f"    {line}" for line in harmless(text, keep_lines=True).split("\n"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[block.encode("utf-8", "replace")])
        plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=f"{name}/text_summary", metadata=plugin, tensor=tensor)
        self._write(Message(wall_time=wall_time, step=step, summary=Summary(value=[value])))
