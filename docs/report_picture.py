"""Take a picture of a run's page: ``python docs/report_picture.py runs/tiny-1``.

Builds the page again from the run's log, opens it in a headless Chromium and writes ``docs/report.png``: the
top of the page, with the findings, the summary and the first curves. Needs the extra ``test`` and a Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from cpulm.analysis.build_report import read_report
from cpulm.ui.page.page import write_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=960)
    parser.add_argument("--dark", action="store_true", help="in the dark theme")
    asked = parser.parse_args()
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        raise SystemExit(f"no browser on PATH: {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        report = Path(folder) / "report.html"
        write_page(report, [read_report(asked.run)])
        # The page is trusted, and containers lack the user namespaces that the browser's sandbox needs.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": asked.width, "height": asked.height},
            color_scheme="dark" if asked.dark else "light",
        )
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-drawn=yes]")
        page.screenshot(path=asked.out)
        browser.close()


if __name__ == "__main__":
    main()
