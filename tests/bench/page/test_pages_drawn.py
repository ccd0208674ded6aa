"""The report: whole, self-contained, and shown by a browser without an error."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sigd.bench import histogram
from sigd.bench.alternatives.document import Comparison
from sigd.bench.growth import Growth
from sigd.bench.page.html import Page, Section, Table
from sigd.bench.page.write import write_report

pytest.importorskip("matplotlib", reason="the extra report draws")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_VOID = {"meta", "br", "img", "hr", "link"}


class Checked(HTMLParser):
    """Whether every element is closed in order; what is fetched; every id."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "xlink:href", "href") and value and tag != "a" and not value.startswith("#"):
                self.fetched.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: Page) -> Checked:
    parsed = Checked()
    parsed.feed(page.text())
    assert parsed.open == []
    return parsed


@pytest.fixture(scope="module")
def pages(comparison: Comparison, growth: Growth) -> dict[str, Page]:
    from sigd.bench.page.latency_page import comparison_page
    from sigd.bench.page.other_pages import facts_page, growth_page

    return {
        "comparison": comparison_page(comparison),
        "growth": growth_page(growth),
        "facts": facts_page("Facts", "lead", {"a": 1, "b": {"c": [1.5, 2]}, "d": [{"e": "x"}]}, passed=False),
    }


@pytest.mark.parametrize("name", ["comparison", "growth", "facts"])
def test_a_page_is_whole_and_needs_nothing_else(pages: dict[str, Page], name: str) -> None:
    parsed = checked(pages[name])
    assert parsed.fetched == []
    assert "script" not in parsed.seen
    assert len(set(parsed.ids)) == len(parsed.ids)


def test_figures_take_the_pages_colours(pages: dict[str, Page]) -> None:
    text = pages["comparison"].text()
    assert "currentColor" in text
    assert "#010203" not in text
    assert "prefers-color-scheme: dark" in text


def test_a_server_that_did_not_run_is_told_with_its_reason(pages: dict[str, Page]) -> None:
    text = pages["comparison"].text()
    assert "did not run: not installed" in text
    assert "the rate was missed" in text
    assert "Any &lt;CPU&gt; &amp; more" in text


def test_words_are_escaped() -> None:
    page = Page("<b>", "a & b", [Section("<i>", ["<p>"], (), [Table(("<th>",), [("<td>",)])])])
    assert "<b>" not in page.text()
    checked(page)


def test_the_figures_lie_beside_the_page(pages: dict[str, Page], tmp_path: Path) -> None:
    written = write_report(tmp_path / "r.html", pages["facts"], b"{}\n", {"": "one", "a": "two"})
    assert [path.name for path in written] == ["r.html", "r.json", "r.hgrm", "r-hgrm"]
    assert all(path.is_file() for path in written[:3])
    assert (tmp_path / "r-hgrm" / "a.hgrm").read_text() == "two"
    assert 'href="r-hgrm/a.hgrm"' in written[0].read_text()


def test_a_curve_has_the_histograms_percentiles() -> None:
    values = np.random.default_rng(2).exponential(20_000, 50_000).astype(np.int64)
    counts = histogram.count(values)
    quantiles, values_ns = histogram.curve(histogram.hdr(counts).encode().decode())
    assert quantiles.size <= histogram.CURVE_POINTS
    assert (np.diff(quantiles) >= 0).all()
    assert (np.diff(values_ns) >= 0).all()
    for percentile in (50.0, 90.0, 99.0, 99.9):
        (expected,) = histogram.percentiles_ns(counts, [percentile])
        assert np.interp(percentile / 100, quantiles, values_ns) == pytest.approx(expected, rel=0.03)


def test_a_curve_of_nothing_is_flat() -> None:
    quantiles, values_ns = histogram.curve(histogram.hdr(histogram.empty()).encode().decode())
    assert quantiles.tolist() == [0.0]
    assert values_ns.tolist() == [1.0]


@pytest.fixture
def shown(tmp_path: Path) -> Callable[[Page, int], tuple[str, str]]:
    """Has Chromium load a page at a width: what it says, and the page after loading with its width in
    data-width."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH: apt install chromium")
    browser = CHROMIUM

    def show(page: Page, width: int) -> tuple[str, str]:
        file = tmp_path / "page.html"
        # The page has no script; this one is the test's, and measures what the browser laid out.
        measure = (
            "<script>onload=()=>{document.body.dataset.width=document.documentElement.scrollWidth}</script>"
        )
        file.write_text(page.text().replace("</body>", f"{measure}</body>"))
        done = subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
                *(f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
                file.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stderr, done.stdout

    return show


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_a_browser_shows_the_page_without_an_error(
    pages: dict[str, Page], shown: Callable[[Page, int], tuple[str, str]], width: int
) -> None:
    said, dom = shown(pages["comparison"], width)
    assert "CONSOLE" not in said
    # A window may not be made narrower than some hundreds of pixels; then the page fits what it got.
    found = re.search(r'data-width="(\d+)"', dom)
    assert found is not None
    assert int(found[1]) <= max(width, 500)
    assert dom.count("<svg") == 4
