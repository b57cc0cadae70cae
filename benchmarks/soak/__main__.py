"""Long tests of the promise that no work is lost, each with its counts.

    python -m benchmarks.soak kills      # kill -9 at random moments, resumed each time
    python -m benchmarks.soak damage     # bytes flipped and files cut short
    python -m benchmarks.soak disk       # a disk that is full, read-only, or a folder that is gone
    python -m benchmarks.soak night      # a hundred thousand steps: does memory grow?
    python -m benchmarks.soak times      # does a run end when it was told to?
    python -m benchmarks.soak cost       # what a checkpoint costs
    python -m benchmarks.soak fuzz       # every file that cpulm reads, with anything in it
    python -m benchmarks.soak places     # pipes, odd streams, folders, signals and limits around a command

Every trial ends with exit code 1 where something was lost; ``--json`` prints the figures for programs.
Counts are said on stderr meanwhile. A long trial may be done in parts: ``places`` with ``--first``, the
others with another ``--seed``; Ctrl-C ends ``places`` with what was counted so far.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any


def _kills(options: argparse.Namespace) -> tuple[dict[str, Any], list[str], bool]:
    from benchmarks.soak import kills

    result = kills.kills(options.count, options.by_command, options.seed)
    return result, kills.told(result), not any(tally["faults"] for tally in result.values())


def _damage(options: argparse.Namespace) -> tuple[dict[str, Any], list[str], bool]:
    from benchmarks.soak import damage

    result = damage.damage(options.count, options.seed)
    return result, damage.told(result), damage.is_good(result)


def _disk(options: argparse.Namespace) -> tuple[dict[str, Any], list[str], bool]:
    from benchmarks.soak import disk

    result = disk.disk(options.count, options.seed)
    return result, disk.told(result), not any(tally["faults"] for tally in result.values())


def _night(options: argparse.Namespace) -> tuple[dict[str, Any], list[str], bool]:
    from benchmarks.soak import night

    result = night.night(options.count)
    return result, night.told(result), result["memory_growth_percent"] < night.MOST_GROWTH_PERCENT


def _times(_options: argparse.Namespace) -> tuple[dict[str, Any], list[str], bool]:
    from benchmarks.soak import times

    result = times.times()
    return result, times.told(result), True


def _cost(_options: argparse.Namespace) -> tuple[dict[str, Any], list[str], bool]:
    from benchmarks.soak import cost

    result = cost.cost()
    return result, cost.told(result), True


def _fuzz(options: argparse.Namespace) -> tuple[dict[str, Any], list[str], bool]:
    from benchmarks.soak import fuzz

    result = fuzz.fuzz(options.count, options.seed)
    return result, fuzz.told(result), not any(row["fault"] for row in result["targets"])


def _places(options: argparse.Namespace) -> tuple[dict[str, Any], list[str], bool]:
    from benchmarks.soak import places

    result = places.places(options.count, options.seed, options.first)
    return result, places.told(result), not result["faults"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    trials = parser.add_subparsers(dest="trial", required=True)
    for name, count in (
        ("kills", 200),
        ("damage", 1000),
        ("disk", 50),
        ("night", 100_000),
        ("fuzz", 100_000),
        ("places", 10_000),
    ):
        trials.add_parser(name).add_argument("--count", type=int, default=count)
    for name in ("times", "cost"):
        trials.add_parser(name)
    trials.choices["kills"].add_argument(
        "--by-command", type=int, default=20, help="additional kills through the command line"
    )
    for name in ("kills", "damage", "disk", "fuzz", "places"):
        trials.choices[name].add_argument("--seed", type=int, default=1)
    trials.choices["places"].add_argument("--first", type=int, default=0, help="number of the first case")
    for trial in trials.choices.values():
        trial.add_argument("--json", action="store_true")
    options = parser.parse_args()
    run: Callable[[argparse.Namespace], tuple[dict[str, Any], list[str], bool]] = globals()[
        f"_{options.trial}"
    ]
    result, lines, good = run(options)
    print(json.dumps(result) if options.json else "\n".join(lines))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
