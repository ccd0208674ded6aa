"""The figures of README and docs/benchmarks.md are those of docs/benchmarks.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
from tests.pages import ROOT, page, read_figures, with_chart

FIGURE: Final = re.compile(r"\d[\d,.]* ?(?:us|(?:requests|rows|signals|answers)(?:/s| a second))\b")
SETTINGS: Final = {
    "README.md": {"100 us"},
    "docs/benchmarking.md": {"10 us"},
    "docs/cpp.md": {"50 us"},
    "docs/doctor.md": {"10 us", "100 us"},
    "docs/metrics.md": {"10 us", "131 us"},
    "docs/recordings.md": {"10,000 requests a second"},
    "docs/tuning.md": {"10 us"},
    "docs/wire.md": {"50 us"},
}
"""Bounds, defaults and examples: nothing that was measured."""
PAGES: Final = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "benchmarks.md")


def prose(path: Path) -> str:
    """Without code blocks, on one line."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return " ".join(line.strip() for line in text.splitlines() if not line.startswith("    "))


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_every_measured_figure_is_in_the_file_of_figures(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    text = prose(path)
    for quoted in (one.says for one in read_figures().elsewhere if one.page == name):
        assert quoted in text, f"docs/benchmarks.json quotes {name}, which says it no more"
        text = text.replace(quoted, "")
    assert set(FIGURE.findall(text)) <= SETTINGS.get(name, set()), "add it to docs/benchmarks.json"


def test_benchmarks_page_is_written_from_the_figures() -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text("utf-8") == page(read_figures()), "run `make pages`"


def test_readme_chart_is_drawn_from_the_figures() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert with_chart(text, read_figures()) == text, "run `make pages`"


def test_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one"):
        with_chart("# sigd\n", read_figures())
