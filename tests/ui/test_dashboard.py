"""Screens drawn from snapshots: their exact size, and their contents."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from rich.cells import cell_len
from rich.console import Console

from cpulm.events import (
    CheckpointSaved,
    Event,
    MachineSampled,
    Notice,
    Progress,
    RunStarted,
    SampleMade,
    StepDone,
    Validated,
)
from cpulm.ui.canvas import ASCII, UNICODE, Glyphs
from cpulm.ui.dashboard import render, render_summary
from cpulm.ui.snapshot import Snapshot, fold
from cpulm.ui.words import describe_model

GOLDEN = Path(__file__).parent / "golden"


def folded(events: Iterable[Event]) -> Snapshot:
    snapshot = Snapshot()
    for event in events:
        snapshot = fold(snapshot, event)
    return snapshot


def running(events: list[Event], upto: int = 90) -> Snapshot:
    """The run as it stands after step ``upto``."""
    return folded(
        event for event in events if getattr(event, "step", 0) <= upto and event.kind != "run_finished"
    )


def lines_of(drawing: object, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(drawing, end="")
    return capture.get().split("\n")


def screen(snapshot: Snapshot, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[str]:
    return lines_of(render(snapshot, width, height, glyphs=glyphs), width, height)


SIZES = [
    (80, 24),
    (140, 40),
    (60, 15),
    (61, 17),
    (100, 30),
    (237, 71),
    (59, 24),
    (80, 14),
    (40, 10),
    (20, 4),
    (1, 1),
]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_a_running_screen_fills_its_window_exactly(
    events: list[Event], width: int, height: int, glyphs: Glyphs
) -> None:
    for upto in (0, 1, 2, 30, 90):
        lines = screen(running(events, upto), width, height, glyphs)
        assert len(lines) == height
        assert {cell_len(line) for line in lines} == {width}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_every_figure_is_on_the_screen(events: list[Event], width: int, height: int) -> None:
    shown = "\n".join(screen(running(events), width, height))
    for words in [
        "tiny-1",
        "preset tiny",
        "3.15 M parameters, 2.10 M without embeddings",
        "fp32 · eager · 2 threads · cpu Intel Xeon",
        "90/100",
        "90.0%",
        "epoch 0.11",
        "5.0s left",
        "smoothed",
        "validation",
        "best at 80",
        "bits per byte",
        "perplexity",
        "learning rate    ",
        "2.00e-03",
        "gradient norm",
        "0.812",
        "it/s",
        "2.00",
        "tok/s",
        "8.19 K",
        "GFLOP/s",
        "156",
        "97%  this run  91%",
        "2.50 GHz  61 °C",
        "this run 812.0 MiB",
        "3.0/8.0 GiB",
        "saved at 80",
        "10s ago",
        "sample at step 80",
        "def read(path):",
        "◆",
        "★",
        "the disk is nearly full",
    ]:
        assert words in shown, words


@pytest.mark.parametrize(("name", "glyphs"), [("80x24.txt", UNICODE), ("80x24-ascii.txt", ASCII)])
def test_the_screen_of_80_by_24_is_the_one_on_file(events: list[Event], name: str, glyphs: Glyphs) -> None:
    shown = "\n".join(line.rstrip() for line in screen(running(events), 80, 24, glyphs)) + "\n"
    assert shown == (GOLDEN / name).read_text(encoding="utf-8")


def test_ascii_screens_are_ascii(events: list[Event]) -> None:
    plain = [event for event in events if not isinstance(event, SampleMade)]
    assert "".join(screen(running(plain), 100, 32, ASCII)).isascii()


def test_before_a_run_starts_the_stages_are_shown_and_no_empty_dashboard() -> None:
    stages = [
        Progress(time=0.0, stage="reading", done=0, total=3, unit="files"),
        Progress(time=1.0, stage="reading", done=3, total=3, unit="files", finished=True),
        Progress(time=1.0, stage="tokenizing", done=0, total=8 * 2**20, unit="bytes"),
        Progress(time=3.0, stage="tokenizing", done=4 * 2**20, total=8 * 2**20, unit="bytes"),
    ]
    lines = screen(folded(stages), 80, 24)
    assert len(lines) == 2
    assert "✓ reading" in lines[0]
    assert "3 files" in lines[0]
    assert all(words in lines[1] for words in ("tokenizing", "50%", "2.0 MiB/s", "2.0s left", "━"))
    assert all(cell_len(line) == 80 for line in lines)


def test_a_stage_of_unknown_length_says_how_long_it_has_taken() -> None:
    compiling = folded([Progress(time=100.0, stage="compiling", done=0, total=None, unit="s")])
    (line,) = lines_of(render(compiling, 80, 24, now=112.0), 80, 24)
    assert "compiling" in line
    assert "12s" in line


def test_a_stage_between_steps_is_on_the_last_line(events: list[Event]) -> None:
    validating = Progress(time=2e9, stage="validating", done=3, total=12, unit="batches")
    last = screen(fold(running(events), validating), 80, 24)[-1]
    assert "validating" in last
    assert "25%" in last


def test_a_peak_is_drawn_however_long_the_run_is(
    step: Callable[..., StepDone], started: Callable[..., RunStarted]
) -> None:
    def top_line(peak: float) -> str:
        snapshot = fold(Snapshot(), started())
        for number in range(1, 5001):
            loss = peak if number == 2500 else 4.0 - number / 2500
            snapshot = fold(snapshot, step(number, loss))
        return screen(snapshot, 100, 30)[4]

    without, with_peak = top_line(3.0), top_line(9.0)
    at, *value = (at for at in range(100) if without[at] != with_peak[at])
    assert without[at] == " "
    assert 0x2800 < ord(with_peak[at]) <= 0x28FF
    assert "".join(with_peak[at] for at in value) == "↑9.00"


def test_early_huge_losses_do_not_squash_the_curve(
    step: Callable[..., StepDone], started: Callable[..., RunStarted]
) -> None:
    snapshot = fold(Snapshot(), started())
    for number in range(1, 1001):
        snapshot = fold(
            snapshot, step(number, 2.0 + 100 * math.exp(-number / 10) + 0.5 * math.exp(-number / 400))
        )
    lines = screen(snapshot, 80, 24)
    labels = [float(line.split("┤")[0].strip("│ ")) for line in lines if "┤" in line]
    assert max(labels) < 4.0
    assert len(labels) >= 3
    assert "↑92.98" in "\n".join(lines)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 0.0, -5.0])
def test_odd_numbers_crash_nothing(events: list[Event], value: float) -> None:
    odd: list[Event] = []
    for event in events:
        if isinstance(event, StepDone):
            event = replace(
                event,
                loss=value,
                lr=value,
                grad_norm=value,
                progress=value,
                epoch=value,
                step_seconds=abs(value),
            )
        elif isinstance(event, MachineSampled):
            event = replace(event, cpu_mhz=None, cpu_temperature=None, memory_total_bytes=0)
        elif event.kind == "validated":
            event = replace(event, loss=value, perplexity=value, bits_per_byte=value)  # type: ignore[call-arg]
        odd.append(event)
    for width, height in ((80, 24), (140, 40), (30, 8)):
        lines = screen(running(odd), width, height)
        assert {cell_len(line) for line in lines} == {width}
        lines_of(render_summary(folded(odd), width), width, height)


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 24), (140, 40)])
def test_without_a_sample_the_panel_says_when_one_comes(events: list[Event], width: int, height: int) -> None:
    shown = "\n".join(screen(running(events, 2), width, height))
    assert re.search(r"│ written at each validation *│", shown)
    without = [replace(one, writes_samples=False) if isinstance(one, RunStarted) else one for one in events]
    shown = "\n".join(screen(running(without, 2), width, height))
    assert re.search(r"│ none in this run *│", shown)


def test_no_sample_can_control_the_terminal(events: list[Event]) -> None:
    nasty = "".join(map(chr, range(0x20))) + "\x7f\x9b\u202e\u2028 [bold]é\u0301 \U0001f600 日本語\n" * 3
    snapshot = fold(running(events), SampleMade(step=90, prompt="a\nb ", text=nasty))
    for width, height in ((80, 24), (59, 20)):
        lines = screen(snapshot, width, height)
        assert {cell_len(line) for line in lines} == {width}
        shown = "".join(lines)
        assert all(char.isprintable() or char == "\ufffd" for char in shown)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
@pytest.mark.parametrize("errors", ["backslashreplace", "replace", "strict"])
def test_what_a_console_cannot_write_leaves_the_frames_whole(
    events: list[Event], encoding: str, errors: str
) -> None:
    text = "caf\u00e9 \ufffd\ufffd \u65e5\u672c\u8a9e e\u0301 \U0001f600 \U0001f1e9\U0001f1ea end"
    snapshot = fold(running(events), SampleMade(step=90, prompt="", text=text))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, newline="")
    console = Console(file=stream, width=80, height=24, color_system=None, legacy_windows=False)
    console.print(render(snapshot, 80, 24, glyphs=ASCII), end="")
    stream.seek(0)
    lines = stream.read().split("\n")
    assert {len(line) for line in lines} == {80}
    assert len(lines) == 24
    assert any("caf" in line and "end" in line for line in lines)


def test_a_run_without_a_preset_shows_none(events: list[Event], started: Callable[..., RunStarted]) -> None:
    assert "preset tiny" in screen(folded([started()]), 80, 24)[0]
    without = replace(started(), preset="none")
    assert "preset" not in screen(folded([without]), 80, 24)[0]
    assert "preset" not in describe_model(without)


def test_a_narrow_window_leaves_figures_out_rather_than_cutting_them(events: list[Event]) -> None:
    wide, narrow = ("\n".join(screen(running(events), width, 14)) for width in (59, 42))
    figures = re.findall(r"[\w/]+ \d\S*", wide)
    assert any(figure.startswith("bits/byte") for figure in figures)
    assert "bits/byte" not in narrow
    assert set(re.findall(r"(?:loss|smoothed|lr|validation|best) \d\S*", narrow)) <= set(figures)


def test_widths_do_not_jump_as_numbers_change(events: list[Event]) -> None:
    """Frames, labels and the progress bar stand still from step to step."""

    def skeleton(snapshot: Snapshot) -> list[tuple[int, str]]:
        lines = screen(snapshot, 80, 24)
        return [(at, char) for line in lines[2:] for at, char in enumerate(line) if char in "╭╮╰╯"]

    assert skeleton(running(events, 45)) == skeleton(running(events, 79))
    bars = {len(screen(running(events, upto), 80, 24)[2].split("  ")[0]) for upto in (2, 50, 99)}
    assert len(bars) == 1


def test_no_news_on_the_last_line_hides_the_way_out_or_a_warning(events: list[Event]) -> None:
    at = running(events).time

    def last_line(after: float, *levels: Literal["info", "warning"]) -> str:
        snapshot = running(events)._replace(notices=())
        for level in levels:
            snapshot = fold(snapshot, Notice(time=at, level=level, message=f"{level}: " + "it is so " * 9))
        return lines_of(render(snapshot, 80, 24, now=at + after), 80, 24)[-1].rstrip()

    hint = "Ctrl-C saves and stops"
    for after, levels, begins in (
        (10, ("info",), " info: it"),
        (30, ("info",), f" {hint}; `cpulm resume"),
        (3600, ("warning",), " warning: it"),
        (10, ("warning", "info"), " warning: it"),
    ):
        assert last_line(after, *levels).startswith(begins)
        assert hint in last_line(after, *levels)


def test_who_has_pressed_ctrl_c_reads_what_follows_and_not_the_hint_to_press_it(events: list[Event]) -> None:
    said = "stopping: all is saved within about 5s; Ctrl-C again loses 24 steps after the"
    snapshot = fold(running(events), Notice(level="warning", message=f"{said} checkpoint of step 100"))
    assert screen(snapshot, 80, 24)[-1].startswith(f" {said}")


def test_notices_are_all_kept_in_a_high_window(events: list[Event]) -> None:
    snapshot = running(events)
    for number in range(3):
        snapshot = fold(snapshot, Notice(level="warning", message=f"warning number {number}"))
    shown = "\n".join(screen(snapshot, 140, 40))
    assert all(f"warning number {number}" in shown for number in range(3))


def test_the_summary_says_how_it_ended(events: list[Event]) -> None:
    shown = "\n".join(lines_of(render_summary(folded(events), 100), 100, 50))
    assert "finished after step 100" in shown
    assert "best validation loss" in shown
    assert "checkpoint runs/tiny-1/best.pt" in shown
    assert "the disk is nearly full [not markup]" in shown


def test_the_summary_keeps_its_head_in_a_small_window(events: list[Event]) -> None:
    window, follows = 24, 8  # an empty line, the page, four lines of commands, the checkpoint, the prompt
    summary = lines_of(render_summary(folded(events), 80, height=window), 80, 60)
    assert len(summary) + follows <= window
    assert "tiny-1" in summary[0]


def test_the_age_of_a_checkpoint_stands_apart_from_its_step(events: list[Event]) -> None:
    saved = [event for event in events if isinstance(event, CheckpointSaved)][-1]
    snapshot = fold(running(events), replace(saved, step=6))
    drawn = render(snapshot, 80, 24, now=saved.time + 790)
    assert re.search(r" saved at 6 +13m 10s ago ", "\n".join(lines_of(drawn, 80, 24)))


def test_both_weights_are_shown_and_the_better_is_marked(events: list[Event]) -> None:
    last = next(event for event in reversed(events) if isinstance(event, Validated))
    for trained, averaged, shown in ((2.5, 2.25, "2.5000  *2.2500"), (2.25, 2.5, "*2.2500  2.5000")):
        both = replace(last, loss=2.25, trained_loss=trained, averaged_loss=averaged)
        lines = screen(fold(running(events), both), 80, 24)
        assert any(re.search(rf"val, avg +{re.escape(shown)}", line) for line in lines)
