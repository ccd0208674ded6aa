"""The figures of README and docs/benchmarks.md are those of docs/benchmarks.json."""

from __future__ import annotations

import pytest
from tests.pages import ROOT, page, read_figures, with_chart


def test_benchmarks_page_is_written_from_the_figures() -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text("utf-8") == page(read_figures()), "run `make pages`"


def test_readme_chart_is_drawn_from_the_figures() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert with_chart(text, read_figures()) == text, "run `make pages`"


def test_readme_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one"):
        with_chart("# sigd\n", read_figures())
