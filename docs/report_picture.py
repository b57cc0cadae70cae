"""Take a picture of a run's page: ``python docs/report_picture.py runs/tiny-1``.

Builds the page again from the run's log, opens it in a headless Chromium and writes ``docs/report.png``: the
top of the page, with the findings, the summary and the first curves. With ``--prompt TEXT`` it takes a
picture of the page that is the run's model instead, ``docs/page.png``, once it has written. Needs the extra
``test`` and a Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from cpulm.analysis.build_report import read_report
from cpulm.export.export_model import ExportRequest, export_model
from cpulm.ui.page.page import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--prompt", help="what the model is to continue, in a picture of its own page")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--width", type=int)
    parser.add_argument("--height", type=int)
    parser.add_argument("--dark", action="store_true", help="in the dark theme")
    asked = parser.parse_args()
    is_model = asked.prompt is not None
    out = asked.out or Path("docs/page.png" if is_model else "docs/report.png")
    width, height = (820, 640) if is_model else (1100, 1030)
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        raise SystemExit(f"no browser on PATH: {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        # The page is trusted, and containers lack the user namespaces that the browser's sandbox needs.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": asked.width or width, "height": asked.height or height},
            color_scheme="dark" if asked.dark else "light",
        )
        if is_model:
            open_model(page, asked.run, Path(folder), asked.prompt)
        else:
            open_report(page, asked.run, Path(folder))
        page.screenshot(path=out)
        browser.close()


def open_report(page: Page, run: Path, folder: Path) -> None:
    """Open the report on a run and wait until it is drawn."""
    write_page(folder / "report.html", [read_report(run)])
    page.goto((folder / "report.html").as_uri())
    page.wait_for_selector("html[data-drawn=yes]")


def open_model(page: Page, run: Path, folder: Path, prompt: str) -> None:
    """Open the page that is a run's model and let it write."""
    request = ExportRequest(run, "page", folder / f"{run.resolve().name}.html")
    page.goto(export_model(request, print).path.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    page.fill("#prompt", prompt)
    page.fill("#temperature", "0.6")
    page.click("#write")
    page.wait_for_selector("body:not(.writing) #write", timeout=120_000)


if __name__ == "__main__":
    main()
