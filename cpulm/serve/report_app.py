"""The report of a run in a browser, drawn again while the run trains; nothing can be changed there."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cpulm.overnight.report_page import draw_report
from cpulm.run_dir import RunDir
from cpulm.serve.answers import HANDLERS, keyed, page
from cpulm.serve.completion_request import RequestError

_REST = 50
"""Times as long as a drawing took it rests: at most 2 % of the machine's time is taken from the training."""


def build_report_app(run: RunDir, key: str) -> Starlette:
    """The application that shows ``run`` to who has the key."""
    return Starlette(routes=report_routes(run, key, "/"), exception_handlers=HANDLERS)


def report_routes(run: RunDir, key: str, path: str) -> list[Route]:
    """What an application needs to show ``run`` at ``path``."""
    live = LiveReport(run)

    async def report(_: Request) -> Response:
        return Response(await live.current(), media_type="text/html")

    return [
        Route(path, page("watch.html", inline=" 'unsafe-inline' 'unsafe-eval'")),
        Route("/watch.js", page("watch.js")),
        Route("/report", keyed(report, key)),
    ]


class LiveReport:
    """The page of a run, drawn when somebody looks and the log has grown."""

    def __init__(self, run: RunDir) -> None:
        self._run, self._lock = run, asyncio.Lock()
        self._page, self._problem, self._log_bytes, self._next_seconds = b"", "", -1, 0.0

    async def current(self) -> bytes:
        """The newest page.

        Raises:
            RequestError: if there is none, with the reason.
        """
        async with self._lock:
            log = self._run.metrics
            size = log.stat().st_size if log.is_file() else 0
            began = time.monotonic()
            if size != self._log_bytes and began >= self._next_seconds:
                await asyncio.to_thread(self._draw)
                self._log_bytes, now = size, time.monotonic()
                self._next_seconds = now + _REST * (now - began)
            if self._problem:
                raise RequestError(self._problem, 503)
            return self._page

    def _draw(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.html"
            self._problem = draw_report(self._run, file)
            if not self._problem:
                self._page = file.read_bytes()
