"""The pages in headless Chromium: plots drawn and answering, the filter works, nothing leaves the file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from plad_ray.report import run as report_run
from tests.report.made_up import world
from tests.report.test_report import EVIL

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """The Chromium of this machine, else the one that ``playwright install chromium`` put there."""
    with playwright.sync_playwright() as started:
        path = shutil.which("chromium") or started.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no Chromium: .venv/bin/python -m playwright install chromium")
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    made = world(tmp_path_factory.mktemp("page"), count=40, evil=EVIL)
    report_run.run(made)
    return Path(made.out.path) / "files" / "report.html"


@pytest.fixture
def page(browser, written):
    """The open page; afterwards it must have asked for nothing but itself and complained of nothing."""
    with opened(browser, written) as page:
        yield page


class opened:  # noqa: N801
    """A page whose requests and complaints are counted."""

    def __init__(self, browser, file: Path, **options):
        self.file, self.asked, self.complaints = file, [], []
        self.page = browser.new_page(viewport={"width": 1240, "height": 900}, **options)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def __enter__(self):
        self.page.goto(self.file.as_uri())
        return self.page

    def __exit__(self, *error: object) -> None:
        self.page.close()
        if error == (None, None, None):
            assert self.complaints == []
            assert [url for url in self.asked if not url.startswith("data:")] == [self.file.as_uri()]


def shown(page) -> int:
    return page.locator(".sample:visible").count()


def test_every_plot_is_drawn(page) -> None:
    assert page.locator("svg").count() == 14
    sizes = page.evaluate("[...document.querySelectorAll('svg')].map(s => [s.clientWidth, s.clientHeight])")
    assert all(width > 200 and height > 100 for width, height in sizes)
    assert page.locator("svg circle.mark").count() > 15 and page.locator("svg path.line").count() >= 10
    assert page.evaluate("window.hacked") is None


def test_a_mark_and_a_curve_say_their_values(page) -> None:
    tip = page.locator("#tip")
    assert tip.is_hidden()
    mark = page.locator("svg circle.mark").first
    mark.hover()
    assert tip.inner_text() == mark.get_attribute("data-tip") and re.search(r"\d\d\.\d \[", tip.inner_text())
    curve = page.locator("svg:has([data-points])").first
    curve.scroll_into_view_if_needed()
    box = curve.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    heading, *lines = tip.inner_text().split("\n")
    points = json.loads(curve.locator("[data-points]").first.get_attribute("data-points"))
    logged = {step: value for _, _, step, value in points}
    step = heading.removeprefix("step ")
    assert lines[0] == f"distilled: {logged[step]}" and 80 < float(step) < 160
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_the_legend_hides_a_line(page) -> None:
    figure = page.locator("figure:has(.legend)").first
    key = figure.locator(".legend button").first
    line = figure.locator(f"path.line[data-name={key.get_attribute('data-series')}]")
    assert line.is_visible()
    key.click()
    assert not line.is_visible() and key.get_attribute("aria-pressed") == "false"
    key.click()
    assert line.is_visible()


def test_samples_are_filtered_by_text_and_by_change_of_score(page) -> None:
    assert shown(page) == 6 and page.locator("form.filter output").inner_text() == "6 of 40 shown"
    changes = [json.loads(c.get_attribute("data-changes"))["seqkd"] for c in page.locator(".sample").all()]
    page.select_option("select[name=arm]", "seqkd")
    for choice, wanted in (("up", [c > 1e-9 for c in changes]), ("down", [c < -1e-9 for c in changes])):
        page.select_option("select[name=change]", choice)
        assert f"of {sum(wanted)} shown" in page.locator("form.filter output").inner_text()
    page.select_option("select[name=change]", "")
    page.select_option("select[name=order]", "gain")
    first = json.loads(page.locator(".sample:visible").first.get_attribute("data-changes"))
    assert first["seqkd"] == max(changes)
    page.fill("input[name=text]", "WINDOW.HACKED")
    assert shown(page) == 1 and "1 of 1 shown" in page.locator("form.filter output").inner_text()
    page.fill("input[name=text]", "")
    page.click("button.more")
    assert shown(page) == 24


def test_the_lineage_marks_kin_and_leads_to_the_table(page) -> None:
    node = page.locator("svg.graph a", has_text="evaluate").first
    node.hover()
    assert (
        page.locator("svg.graph a.dim").count() == 3
    )  # neither adapters nor SFT are an input of the made-up evaluation
    node.click()
    assert page.url.endswith("#" + node.get_attribute("data-node"))


def test_dark_and_printed(browser, written, tmp_path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        with opened(browser, written, color_scheme=scheme) as page:
            colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            if scheme == "dark":
                page.emulate_media(media="print")
                assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
                assert not page.locator("form.filter").is_visible()
                assert page.pdf(path=tmp_path / "page.pdf", format="A4").startswith(b"%PDF")
    assert colours["light"] != colours["dark"]


def test_without_scripts_everything_is_there(browser, written) -> None:
    with opened(browser, written, java_script_enabled=False) as page:
        assert shown(page) == 40 and not page.locator("form.filter").is_visible()
