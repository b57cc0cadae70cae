"""The page in a real browser, opened as a file, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from cpulm.analysis.report import Report, Sample, TimelineEntry
from cpulm.ui.page.page import write_page
from tests.ui.page.conftest import EVIL

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESKTOP, PHONE = 1400, 390
Open = Callable[..., Any]


@contextmanager
def opened(
    browser: Browser, path: Path, width: int = DESKTOP, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Page]:
    """The page once all is drawn; whatever the console said, or the page asked a network for, is an error."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: trouble.append(request.url) if _is_network(request.url) else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn=yes]")
    yield page
    page.close()
    assert trouble == []


def _is_network(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


def labels(page: Page, chart: str) -> list[str]:
    """The texts of a chart's axes."""
    return page.locator(f"#chart-{chart} .picture svg .mark-text.role-axis-label text").all_text_contents()


def wait_until(page: Page, holds: Callable[[], bool]) -> None:
    """Give the page up to a minute."""
    for _ in range(1200):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("the page did not answer")


def values(page: Page, chart: str) -> str:
    return page.locator(f"#chart-{chart} .readout").inner_text()


def point_at(page: Page, chart: str, share: float) -> tuple[float, float]:
    """Move the mouse into a chart, at a share of its width; where that is."""
    page.locator(f"#chart-{chart}").scroll_into_view_if_needed()
    box = page.locator(f"#chart-{chart} .picture svg").bounding_box()
    assert box is not None
    place = box["x"] + share * box["width"], box["y"] + box["height"] / 2
    page.mouse.move(*place)
    return place


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", ["one", "many"])
def test_every_tab_shows_its_pictures_and_none_is_wider_than_the_window(
    browser: Browser, pages: dict[str, Path], name: str, width: int, tmp_path: Path
) -> None:
    with opened(browser, pages[name], width) as page:
        tabs = page.get_by_role("tab").all_inner_texts()
        assert (
            tabs
            == {
                "one": ["Curves", "Samples", "Model", "Layers", "What happened", "Settings"],
                "many": ["Compared", "Curves", "Samples", "Layers", "What happened", "Settings"],
            }[name]
        )
        for tab in tabs:
            page.get_by_role("tab", name=tab, exact=True).click()
            shown = page.locator(".panel.shown")
            assert shown.count() == 1
            assert shown.is_visible()
            for picture in shown.locator(".picture").all():
                assert picture.locator("svg path, svg rect").count() > 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        screenshot = page.screenshot(path=tmp_path / f"{name}-{width}.png", full_page=True)
        assert screenshot.startswith(b"\x89PNG")


def test_pointing_at_one_chart_tells_the_values_of_all(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        before = values(page, "lr")
        assert "step" not in before
        point_at(page, "loss", 0.3)
        wait_until(page, lambda: "step" in values(page, "lr"))
        early = values(page, "lr")
        point_at(page, "loss", 0.8)
        wait_until(page, lambda: values(page, "lr") != early)
        assert page.locator("#chart-lr .picture svg .mark-rule line").count() >= 1


def test_drawing_over_a_chart_zooms_all_of_them_and_back(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        whole = labels(page, "grad_norm")
        place = point_at(page, "loss", 0.4)
        page.mouse.down()
        page.mouse.move(place[0] + 40, place[1], steps=3)
        page.mouse.move(place[0] + 160, place[1], steps=5)
        page.mouse.up()
        page.wait_for_selector("#reset:not([hidden])")
        wait_until(page, lambda: labels(page, "grad_norm") != whole)
        page.locator("#reset").click()
        wait_until(page, lambda: labels(page, "grad_norm") == whole)


@pytest.mark.parametrize("by", ["tokens", "seconds"])
def test_the_axis_is_what_the_reader_chooses(browser: Browser, pages: dict[str, Path], by: str) -> None:
    words = {"tokens": "tokens trained", "seconds": "seconds of training"}[by]
    with opened(browser, pages["one"]) as page:
        page.locator(f"[data-by={by}]").click()
        page.wait_for_selector(f"#chart-lr .role-axis-title text:text-is('{words}')")


def test_a_log_scale_is_for_charts_that_it_makes_clearer(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        loss, throughput = labels(page, "loss"), labels(page, "throughput")
        page.locator("#log").click()
        wait_until(page, lambda: labels(page, "loss") != loss)
        assert labels(page, "throughput") == throughput


def test_it_follows_the_systems_theme_until_the_reader_chooses(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with opened(browser, pages["one"], scheme="dark") as dark, opened(browser, pages["one"]) as light:
        night, day = background(dark), background(light)
        assert night != day
        dark.locator("#theme").click()
        assert background(dark) == day
        light.locator("#theme").click()
        assert background(light) == night
        line = "getComputedStyle(document.querySelector('#chart-lr .mark-line path')).stroke"
        assert light.evaluate(line) != dark.evaluate(line)
        light.emulate_media(media="print")
        assert light.evaluate(line) == dark.evaluate(line)


def test_on_a_phone_the_first_curve_comes_before_the_details(
    browser: Browser, pages: dict[str, Path]
) -> None:
    notes = "[...document.querySelectorAll('.fact')].filter(one => one.querySelector('small')?.offsetHeight)"
    labels_of_notes = f"{notes}.map(one => one.querySelector('span').textContent)"
    with opened(browser, pages["one"], PHONE) as page:
        on_phone = set(page.evaluate(labels_of_notes))
        assert {"progress", "best"} <= on_phone
        assert not on_phone & {"model", "machine", "precision", "throughput", "memory"}
    with opened(browser, pages["one"]) as page:
        assert {"model", "precision", "progress", "best"} <= set(page.evaluate(labels_of_notes))


def test_on_paper_every_panel_is_there(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        page.emulate_media(media="print")
        assert all(panel.is_visible() for panel in page.locator(".panel").all())
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_arrow_keys_go_through_the_tabs(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        page.get_by_role("tab", name="Curves").focus()
        page.keyboard.press("ArrowRight")
        assert page.get_by_role("tab", name="Samples").get_attribute("aria-selected") == "true"


def test_samples_are_leafed_through_and_settings_found(
    browser: Browser, pages: dict[str, Path], report: Report
) -> None:
    with opened(browser, pages["one"]) as page:
        page.get_by_role("tab", name="Samples").click()
        about = page.locator(".samples .about")
        assert f"Step {report.samples[-1].step}" in about.inner_text()
        page.get_by_role("button", name="Earlier").click()
        assert f"Step {report.samples[-2].step}" in about.inner_text()
        page.get_by_role("tab", name="Settings").click()
        page.get_by_role("searchbox").fill("train.lr")
        assert page.locator("#settings tbody tr:visible").first.inner_text().startswith("train.lr")


def test_a_run_is_hidden_and_shown_by_its_button(browser: Browser, pages: dict[str, Path]) -> None:
    lines = "#chart-grad_norm .mark-line path"
    with opened(browser, pages["many"]) as page:
        page.get_by_role("tab", name="Curves").click()
        assert page.locator(lines).count() == 2
        button = page.locator(".legend button").first
        button.click()
        wait_until(page, lambda: page.locator(lines).count() == 1)
        button.click()
        wait_until(page, lambda: page.locator(lines).count() == 2)


def test_a_head_that_is_clicked_shows_its_map(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"]) as page:
        page.get_by_role("tab", name="Model").click()
        assert page.get_by_text("Layer 0, head 0").is_visible()
        page.locator("[aria-label='All heads'] .mark-rect path").last.click()
        page.get_by_text("Layer 1, head 1").wait_for()


def test_a_token_under_the_pointer_shows_what_was_expected(
    browser: Browser, pages: dict[str, Path], look: dict[str, Any]
) -> None:
    with opened(browser, pages["one"]) as page:
        page.get_by_role("tab", name="Model").click()
        page.locator(".passage span").nth(3).hover()
        rank = page.locator(".detail tr").filter(has_text="rank").locator("td").last
        assert rank.inner_text() == f"{look['passage']['rank'][3]:,}"


def test_texts_are_texts_whatever_they_hold(browser: Browser, report: Report, tmp_path: Path) -> None:
    evil = replace(
        report,
        name=EVIL,
        samples=(Sample(1, 1, 1.0, f"{EVIL} \ud800 \x1b[31m 日本語"),),
        timeline=(TimelineEntry(1, 1.0, "warning", EVIL),),
    )
    write_page(tmp_path / "evil.html", [evil])
    with opened(browser, tmp_path / "evil.html") as page:
        assert page.locator("#evil").count() == 0
        assert page.locator("h1").inner_text().startswith(EVIL)
        assert page.locator("#samples pre").text_content() == f"{EVIL} \ufffd \ufffd[31m 日本語"


def test_a_run_that_has_recorded_nothing_yet_has_a_page(
    browser: Browser, report: Report, tmp_path: Path
) -> None:
    empty = replace(report, curves={}, layers={}, samples=(), timeline=(), time_parts={}, findings=())
    write_page(tmp_path / "empty.html", [empty])
    with opened(browser, tmp_path / "empty.html") as page:
        assert page.get_by_text("Nothing has been recorded yet.").is_visible()
