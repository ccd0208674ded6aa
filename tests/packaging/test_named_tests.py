"""The pages on security and on faults name the tests that show what they say: those are there, and so are the
bounds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sigd.daemon.config.config import Config

TESTS = Path(__file__).resolve().parents[1]
DOCS = TESTS.parent / "docs"
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
FAULTS_MIN = 25


def rows(page: str, columns: int) -> list[list[str]]:
    """The cells of every row of the tables with so many columns, their heads left out."""
    lines = (DOCS / page).read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rules = [index for index, row in enumerate(cells) if set("".join(row)) == {"-"}]
    heads = {index - 1 for index in rules} | set(rules)
    return [row for index, row in enumerate(cells) if index not in heads and len(row) == columns]


def defined(file: str) -> set[str]:
    path = TESTS / file
    return set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)) if path.is_file() else set()


@pytest.mark.parametrize("page", ["security.md", "faults.md"])
def test_every_test_that_is_named_exists(page: str) -> None:
    named = NAMED.findall((DOCS / page).read_text())
    assert len(named) > FAULTS_MIN
    missing = [f"{file}::{name}" for file, name in named if name not in defined(file)]
    assert missing == []


@pytest.mark.parametrize("page", ["security.md", "faults.md"])
def test_whatever_looks_like_a_test_is_named_as_one(page: str) -> None:
    text = (DOCS / page).read_text()
    assert len(re.findall(r"test_\w+`", text)) == len(NAMED.findall(text))


def test_every_fault_says_what_happens_and_is_shown() -> None:
    faults = rows("faults.md", 3)
    assert len(faults) >= FAULTS_MIN
    assert len({fault for fault, _, _ in faults}) == len(faults)
    for fault, happens, shown in faults:
        assert fault, shown
        assert happens, fault
        assert NAMED.findall(shown), fault


def test_every_party_that_may_try_something_is_shown_what() -> None:
    who = rows("security.md", 4)
    assert len(who) >= 6
    for row in who:
        assert NAMED.findall(row[3]), row[0]


def test_every_bound_is_as_the_page_says() -> None:
    bounds = rows("security.md", 5)
    assert len(bounds) >= 20
    for bound, default, name, past, shown in bounds:
        assert past, bound
        assert NAMED.findall(shown), bound
        if name == "fixed" or name.startswith("the unit's"):
            continue
        value: object = Config()
        for part in name.strip("`").split("."):
            value = getattr(value, part)
        assert float(default.split()[0].replace(",", "")) == value, bound


def test_every_bound_that_can_be_set_is_on_the_page() -> None:
    text = (DOCS / "security.md").read_text()
    for name in Config.__struct_fields__:
        if name.endswith(("_max", "_timeout_s", "_timeout_ms")):
            assert f"`{name}`" in text, name
