"""Speed and memory of tokenizing, in a fresh process for each run.

    python benchmarks/tokenizing.py                          # 100 MB, the library's sources repeated
    python benchmarks/tokenizing.py --mb 1000 --text a.txt   # 1 GB, a text of your own repeated
    python benchmarks/tokenizing.py --mb 0                   # the text once: every word is new at first
    python benchmarks/tokenizing.py --formats text csv jsonl json parquet   # also as rows of 20 lines
    python benchmarks/tokenizing.py --formats text csv --template "{number} {text}"   # rows by a template
    python benchmarks/tokenizing.py --formats text csv --mb 1000 --share 0.01   # a share of a large text

MB are 10^6 bytes of text, without what a format adds. ``MB/s`` is over the wall time of the stage,
``MB/CPU-s`` over the processor time of all threads, which is the speed per core on a machine that does other
things as well. The vocabulary is trained in the same run; its time is given apart.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STAGES = ("reading", "sampling the text", "learning the vocabulary", "tokenizing")


def main() -> None:
    """Measure each kind of tokenizer in its own process, or run as that process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mb", type=float, default=100.0, help="size of the input; 0: the text once")
    parser.add_argument("--text", type=Path, nargs="*", help="text to repeat (default: builtin:python)")
    parser.add_argument("--kinds", nargs="*", default=["bpe"], help="bpe byte char word, or a tokenizer.json")
    parser.add_argument("--formats", nargs="*", default=["text"], help="text csv tsv jsonl json parquet")
    parser.add_argument("--template", default="", help="of rows; without: their column text")
    parser.add_argument("--share", type=float, default=1.0, help="data.share")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        source, kind = options.measure
        settings = {"vocab_size": options.vocab_size, "template": options.template, "share": options.share}
        print(json.dumps(measure(source, kind, settings)))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "input.txt"
        write_input(text, options.mb, options.text)
        print(f"{text.stat().st_size / 1e6:,.1f} MB of input, {os.cpu_count()} cores")
        columns = (
            "tokenizer",
            "format",
            "MB/s",
            "MB/CPU-s",
            "bytes/token",
            "peak MB",
            "reading s",
            "vocabulary s",
            "all s",
        )
        print("".join(f"{column:>14}" for column in columns))
        for kind, form in itertools.product(options.kinds, options.formats):
            source = text if form == "text" else write_rows(text, form)
            template = "" if form == "text" else options.template
            command = [sys.executable, __file__, "--measure", str(source), kind, "--template", template]
            done = subprocess.run(
                [*command, "--vocab-size", str(options.vocab_size), "--share", str(options.share)],
                check=True,
                capture_output=True,
                text=True,
            )
            print("".join(f"{cell:>14}" for cell in row(kind, form, json.loads(done.stdout))))


def write_input(path: Path, megabytes: float, texts: list[Path] | None) -> None:
    """Write the texts repeatedly up to the requested size."""
    if texts is None:
        from cpulm.data.sources import builtin_python

        texts = [Path(file.at) for file in builtin_python()]
    once = b"\n".join(text.read_bytes().decode("utf-8", "replace").encode() for text in texts)
    with path.open("wb") as file:
        file.write(once)
        while file.tell() < megabytes * 1e6:
            file.write(b"\n" + once)


def write_rows(text: Path, form: str) -> Path:
    """Write the text as rows of 20 lines, in the column ``text``, beside a number."""
    path = text.with_suffix(f".{form}")
    with text.open(encoding="utf-8", newline="") as file:
        rows = ("".join(lines) for lines in iter(lambda: list(itertools.islice(file, 20)), []))
        if form == "parquet":
            import pyarrow
            import pyarrow.parquet

            schema = pyarrow.schema([("number", pyarrow.int64()), ("text", pyarrow.string())])
            with pyarrow.parquet.ParquetWriter(path, schema) as writer:
                for first, batch in enumerate(iter(lambda: list(itertools.islice(rows, 10_000)), [])):
                    numbers = range(first * 10_000, first * 10_000 + len(batch))
                    writer.write_table(pyarrow.table([list(numbers), batch], schema=schema))
            return path
        with path.open("w", encoding="utf-8", newline="") as out:
            if form in ("csv", "tsv"):
                writer = csv.writer(out, delimiter="\t" if form == "tsv" else ",")
                writer.writerow(["number", "text"])
                writer.writerows(enumerate(rows))
                return path
            out.write("[" if form == "json" else "")
            for number, words in enumerate(rows):
                one = json.dumps({"number": number, "text": words}, ensure_ascii=False)
                out.write((",\n" if form == "json" else "\n") * (number > 0) + one)
            out.write("]" if form == "json" else "\n")
    return path


def measure(source: str, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """Tokenize ``source`` in this process: seconds per stage, processor seconds of the last, peak memory."""
    from cpulm.data.prepare import prepare
    from cpulm.events import Event, Progress
    from cpulm.settings import DataSettings

    began: dict[str, tuple[float, float]] = {}
    ended: dict[str, tuple[float, float]] = {}

    def note(event: Event) -> None:
        if isinstance(event, Progress):
            now = (time.perf_counter(), time.process_time())
            began.setdefault(event.stage, now)
            ended[event.stage] = now

    with tempfile.TemporaryDirectory() as folder:
        settings = DataSettings(source=[source], tokenizer=kind, **data)
        start = time.perf_counter()
        tokens = prepare(settings, emit=note, should_stop=lambda: False, out=Path(folder) / "tokens")
        seconds = time.perf_counter() - start
        return {
            "bytes": tokens.meta["train"]["bytes"] + tokens.meta["val"]["bytes"],
            "bytes_per_token": tokens.bytes_per_token,
            "seconds": {name: ended[name][0] - began[name][0] for name in STAGES if name in ended},
            "cpu_seconds": ended["tokenizing"][1] - began["tokenizing"][1],
            "all_seconds": seconds,
            "peak_bytes": peak_bytes(),
        }


def peak_bytes() -> int:
    """The peak resident set of this process."""
    import psutil

    memory = psutil.Process().memory_info()
    if sys.platform == "win32":
        return int(memory.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def row(kind: str, form: str, measured: dict[str, Any]) -> list[str]:
    """One line of the table."""
    megabytes, seconds = measured["bytes"] / 1e6, measured["seconds"]
    vocabulary = sum(seconds.get(stage, 0.0) for stage in STAGES[1:3])
    return [
        Path(kind).name,
        form,
        f"{megabytes / seconds['tokenizing']:.1f}",
        f"{megabytes / measured['cpu_seconds']:.1f}",
        f"{measured['bytes_per_token']:.2f}",
        f"{measured['peak_bytes'] / 1e6:.0f}",
        f"{seconds['reading']:.1f}",
        f"{vocabulary:.1f}",
        f"{measured['all_seconds']:.1f}",
    ]


if __name__ == "__main__":
    main()
