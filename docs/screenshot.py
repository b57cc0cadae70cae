"""Draw the dashboard of a recorded run: ``python docs/screenshot.py runs/tiny-1/metrics.jsonl``.

Writes ``docs/dashboard.svg``; ``--width`` and ``--height`` are the window's cells, ``--at`` the step at
which the picture is taken (by default three quarters of the run).
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console

from cpulm.events import StepDone
from cpulm.runlog.tail import Tail
from cpulm.ui.dashboard import render
from cpulm.ui.snapshot import Snapshot, fold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", type=Path, help="the metrics.jsonl of a run")
    parser.add_argument("--out", type=Path, default=Path("docs/dashboard.svg"))
    parser.add_argument("--width", type=int, default=110)
    parser.add_argument("--height", type=int, default=32)
    parser.add_argument("--at", type=int, default=None, help="the step of the picture")
    asked = parser.parse_args()
    events = list(Tail(asked.metrics).new_events())
    newest = max(event.step for event in events if isinstance(event, StepDone))
    at = asked.at if asked.at is not None else newest * 3 // 4
    snapshot = Snapshot()
    for event in events:
        snapshot = fold(snapshot, event)
        if isinstance(event, StepDone) and event.step >= at:
            break
    console = Console(
        record=True,
        file=io.StringIO(),
        width=asked.width,
        height=asked.height,
        color_system="truecolor",
        force_terminal=True,
    )
    console.print(render(snapshot, asked.width, asked.height))
    preset = snapshot.started.preset if snapshot.started is not None else "tiny"
    console.save_svg(str(asked.out), title=f"cpulm train --preset {preset}")


if __name__ == "__main__":
    main()
