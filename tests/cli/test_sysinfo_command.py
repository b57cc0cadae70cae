"""``cpulm sysinfo`` in a pipe: text and JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def sysinfo(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cpulm", "sysinfo", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environ},
        timeout=120,
        check=True,
    )


def test_json_holds_the_machine_and_the_choices() -> None:
    done = sysinfo("--json")
    answer = json.loads(done.stdout)
    assert set(answer) == {"machine", "choices"}
    assert answer["machine"]["usable_cores"] == answer["choices"]["threads"]["value"]
    assert answer["choices"]["preset"]["value"] in ("tiny", "small", "medium", "large")
    for name in ("device", "threads", "precision", "compile", "preset"):
        assert answer["choices"][name]["reason"]


def test_text_shows_every_section_without_colour_in_a_pipe() -> None:
    text = sysinfo(NO_COLOR="1").stdout
    for words in ("Processor", "Memory and disk", "Software", "What cpulm will choose", "torch", "threads"):
        assert words in text
    assert "\x1b" not in text


def test_a_console_without_utf8_gets_an_answer() -> None:
    assert "threads" in sysinfo(PYTHONIOENCODING="ascii").stdout


def test_colour_where_it_is_asked_for() -> None:
    environ = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    done = subprocess.run(
        [sys.executable, "-m", "cpulm", "sysinfo"],
        capture_output=True,
        encoding="utf-8",
        env={**environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
        timeout=120,
        check=True,
    )
    assert "\x1b[" in done.stdout
