"""The pages in a browser: they render, fetch nothing, and show what both models would have written."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from diagnostics.report.diagnosis_page import render_diagnosis
from diagnostics.report.run_page import render_run
from tests.diagnostics import report_examples as examples
from tests.diagnostics.report_examples import hostile_diagnosis

CHROMIUM = shutil.which("chromium")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


class Visit:
    """A page that was opened from a file, and what went wrong on it."""

    def __init__(self, browser: Browser, folder: Path, html: str, width: int = 1200) -> None:
        file = folder / "report.html"
        file.write_text(html, encoding="utf-8")
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, has_touch=width < 600)
        self.context.route(lambda url: not url.startswith(("file:", "data:")), self._refuse)
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(file.as_uri())

    def _refuse(self, route: Route) -> None:
        self.complaints.append(f"fetched {route.request.url}")
        route.abort()

    def is_clean(self) -> bool:
        outside = [url for url in self.requests[1:] if not url.startswith("data:")]
        return not self.complaints and not outside and self.requests[0].startswith("file:")


@pytest.fixture
def visited(browser: Browser, tmp_path: Path) -> Iterator[Visit]:
    visit = Visit(browser, tmp_path, render_diagnosis(examples.diagnosis()))
    yield visit
    visit.context.close()


def test_a_diagnosis_renders_and_fetches_nothing(visited: Visit) -> None:
    page = visited.page
    assert page.locator("h2").first.inner_text() == "Go, after a cold start"
    box = page.locator(".headline").bounding_box()
    assert box is not None and box["y"] + box["height"] < 700  # the verdict is seen without scrolling
    assert all(chart.bounding_box()["height"] > 100 for chart in page.locator("svg.chart").all())
    assert visited.is_clean(), (visited.complaints, visited.requests)


def test_pointing_at_a_token_shows_what_both_models_would_have_written(visited: Visit) -> None:
    popup, token = visited.page.locator("#popup"), visited.page.locator("#t1-0")
    assert popup.is_hidden()
    token.hover()
    rows = [row.split("\t") for row in popup.inner_text().splitlines()]
    assert ["this token", "−0.25 (78 %)", "−6.50 (0 %)"] in rows
    assert ["log q − log p", "", "−6.25"] in rows and ["reverse KL", "", "6.25"] in rows
    own, teachers = rows.index(["student's top", "", ""]), rows.index(["teacher's top", "", ""])
    assert rows[own + 1][0] == "nine" and rows[own + 2] == ["seven", "−2.50 (8 %)", "−1.75 (17 %)"]
    assert rows[teachers + 1] == ["eight", "−3.25 (4 %)", "−0.13 (88 %)"]
    visited.page.mouse.move(2, 2)
    assert popup.is_hidden() and visited.is_clean()


def test_the_keyboard_goes_from_token_to_token(visited: Visit) -> None:
    page, popup = visited.page, visited.page.locator("#popup")
    page.locator("#t1-0").focus()
    assert "nine" in popup.inner_text()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "t1-1" and "point" in popup.inner_text()
    page.keyboard.press("Escape")
    assert popup.is_hidden()


def test_the_worst_tokens_lead_to_their_place(visited: Visit) -> None:
    visited.page.locator("td.token a").first.click()
    assert visited.page.evaluate("document.activeElement.id") == "t1-0"
    assert visited.page.locator("#popup").is_visible()


def test_the_colours_follow_the_signal_that_is_chosen(visited: Visit) -> None:
    page = visited.page

    def colour() -> str:
        return str(page.locator("#t1-0").evaluate("token => getComputedStyle(token).backgroundColor"))

    before = colour()
    page.get_by_label("reverse KL", exact=True).check()
    assert before == "rgb(134, 68, 156)" and colour() == "rgb(168, 68, 16)"
    assert page.locator("[data-of=kl]").is_visible() and page.locator("[data-of=ratio]").is_hidden()


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_sticks_out_of_the_page(browser: Browser, tmp_path: Path, width: int) -> None:
    for html in (render_diagnosis(examples.diagnosis()), render_run(examples.run())):
        visit = Visit(browser, tmp_path, html, width)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        visit.page.locator(".t").last.focus()
        box = visit.page.locator("#popup").bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
        assert visit.is_clean(), visit.complaints
        visit.context.close()


def test_what_a_model_writes_never_runs(browser: Browser, tmp_path: Path) -> None:
    visit = Visit(browser, tmp_path, render_diagnosis(hostile_diagnosis()))
    visit.page.locator("#t0-0").hover()
    assert "<script>alert(1)</script>" in visit.page.locator("#popup").inner_text()
    assert visit.page.locator("img").count() == 0 and visit.is_clean(), visit.complaints
    visit.context.close()
