"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sigd.bench.plan.ranges import Range
from sigd.bench.plan.table import short


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar inside a cell is escaped."""
    lines = [_row(head), "|" + "|".join("---" for _ in head) + "|"]
    return "\n".join([*lines, *(_row(row) for row in rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def code(text: str) -> str:
    """An indented block."""
    return "\n".join(f"    {line}".rstrip() for line in text.rstrip("\n").split("\n"))


def span(value: Range | None) -> str:
    """Low to high, or the one value."""
    if value is None:
        return ""
    low, high = short(value.low), short(value.high)
    return low if low == high else f"{low} to {high}"
