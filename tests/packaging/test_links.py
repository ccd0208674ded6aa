"""Every relative link of README, CHANGELOG and docs leads somewhere, anchors too, and so does what the
sources name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:\A|\n\n)(?: {4}.*(?:\n|\Z)|\n)+")
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:", re.IGNORECASE)


def targets(text: str) -> Iterator[str]:
    """Where the links of a page lead, those to other sites left out."""
    prose = CODE.sub("", INDENTED.sub("\n\n", FENCED.sub("", text)))
    for inline, reference in LINK.findall(prose):
        if not ELSEWHERE.match(inline or reference):
            yield inline or reference


def anchors(text: str) -> set[str]:
    """What may stand behind a # to reach a heading: as the common viewers of Markdown name it."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def broken(page: Path, root: Path = ROOT) -> Iterator[str]:
    """Links of a page that lead nowhere."""
    for target in targets(page.read_text("utf-8")):
        path, _, anchor = unquote(target).partition("#")
        file = page.parent / path if path else page
        inside = file.resolve().is_relative_to(root)
        if not inside or not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_holds_two_versions_of_itself(page: Path) -> None:
    assert re.findall(r"^(?:<{7}|>{7}|\|{7}) .*", page.read_text("utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_small_word_stands_twice(page: Path) -> None:
    prose = INDENTED.sub("\n\n", FENCED.sub("", page.read_text("utf-8")))
    assert re.findall(r"(?i)\b(a|an|and|as|for|in|is|it|of|on|the|to|with)\s+\1\b", prose) == []


def test_links_are_found_where_readers_find_them() -> None:
    page = """
[a](one.md), [`b`](two.md#three) and `[c](not.md)` and [d](https://example.com/x)
over [two
lines](four.md).

    [e](not.md)

```
[f](not.md)
```

[g]: five.md
"""
    assert list(targets(page)) == ["one.md", "two.md#three", "four.md", "five.md"]


def test_anchors_are_those_of_the_headings() -> None:
    page = "# One\n\n## `sigd` & co.: a [link](x.md)\n\n### 3 Reject\n\n## One\n\n```\n# no heading\n```\n"
    assert anchors(page) == {"one", "sigd--co-a-link", "3-reject", "one-1"}


def test_a_broken_link_is_told(tmp_path: Path) -> None:
    assert len([target for page in PAGES for target in targets(page.read_text("utf-8"))]) > 50
    page = tmp_path / "page.md"
    page.write_text(
        "[a](none.md) [b](#none) [c](#here) [d](page.md#here) [e](page.md#none) [f](..)\n\n# Here\n"
    )
    assert list(broken(page, tmp_path)) == ["none.md", "#none", "page.md#none", ".."]


def test_every_page_that_the_sources_name_is_there() -> None:
    named: dict[str, Path] = {}
    for folder in ("bench", "daemon", "models", "systemd", "tests", "wire"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in {".py", ".hpp", ".cpp", ".txt", ".toml", ".conf", ".service", ".socket"}:
                for page in re.findall(r"\bdocs/[\w./-]+\.(?:md|json|yml)\b", file.read_text("utf-8")):
                    named[page] = file
    assert "docs/cpp.md" in named
    assert {page: file for page, file in named.items() if not (ROOT / page).exists()} == {}
