"""docs/metrics.md: its table is made from the families, and names nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sigd.daemon.admin.metrics.families import FAMILIES
from sigd.daemon.admin.metrics.tables import shown_name, with_table

PAGE = Path(__file__).resolve().parents[4] / "docs" / "metrics.md"
TEXT = PAGE.read_text("utf-8")


def test_the_table_is_current() -> None:
    assert with_table(TEXT) == TEXT, (
        "write it anew: python -m sigd.daemon.admin.metrics.tables docs/metrics.md"
    )


def test_the_command_that_writes_it_anew(tmp_path: Path) -> None:
    page = tmp_path / "metrics.md"
    page.write_text(TEXT.replace("`sigd_requests_total`", "`sigd_answers_total`"), "utf-8")
    command = [sys.executable, "-P", "-m", "sigd.daemon.admin.metrics.tables", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert page.read_text("utf-8") == TEXT


def test_every_name_on_the_page_is_one_that_is_told() -> None:
    shown = {shown_name(family) for family in FAMILIES}
    named = set(re.findall(r"\b(?:sigd|process)_[a-z_]+", TEXT))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} == shown


def test_a_page_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one for each"):
        with_table("# Metrics\n")


def test_the_files_that_it_points_to_are_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / link).exists(), link
