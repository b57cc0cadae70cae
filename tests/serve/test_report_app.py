"""``cpulm watch --web``: the report of a run in a browser, drawn anew as the run trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import cpulm
from forked import forks as forks
from recorded_runs import MakeRun
from recorded_runs import make_run as make_run
from running_server import running

from cpulm.run_dir import RunDir
from cpulm.serve import report_app

KEY = "a-key"


@pytest.mark.slow
def test_the_report_follows_the_log_and_needs_the_key(
    browser: Any, make_run: MakeRun, forks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_app, "_REST", 0)
    run = RunDir(make_run(steps=100))
    with running(report_app.build_report_app(run, KEY)) as address:
        assert httpx.get(f"{address}/report").status_code == 401
        asked: dict[str, Any] = {"headers": {"Authorization": f"Bearer {KEY}"}, "timeout": 60}
        first = httpx.get(f"{address}/report", **asked).text
        assert httpx.get(f"{address}/report", **asked).text == first
        page = browser.new_page()
        page.goto(f"{address}/#key={KEY}")
        page.frame_locator("#report").locator("svg").first.wait_for(timeout=60_000)
        assert page.inner_text("#status") == ""
        page.close()
        run.metrics.write_bytes(RunDir(make_run("later", steps=200)).metrics.read_bytes())
        later = httpx.get(f"{address}/report", **asked).text
        assert later != first
        run.metrics.write_text("")
        broken = httpx.get(f"{address}/report", **asked)
        assert broken.status_code == 503
        assert broken.json()["error"]["message"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--port", "0"), "without --web"),
        (("--web", "--speed", "3"), "instead of the dashboard"),
        (("--web", "--host", "192.0.2.1"), "port 8000 of 192.0.2.1 cannot be used"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...], complaint: str, make_run: MakeRun
) -> None:
    run: Path = make_run(steps=10)
    done = cpulm(run, "watch", str(run), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
