"""The byte tables of docs/wire.md, generated from the field tables.

`python -m sigd.wire.schema.tables docs/wire.md` writes them anew, between the marks `<!-- table: NAME -->`
and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sigd.wire import fields
from sigd.wire.fields import Field

_SYMBOLS: Final = {"features": "n", "outputs": "m"}
_MARKED: Final = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> dict[str, str]:
    """Markdown tables by name: "header", each message's name, and "region"."""
    found = {"header": _fields(fields.HEADER)}
    found |= {message.name: _fields(message.fields) for message in fields.MESSAGES}
    region = [
        f"| {field.offset} | {field.kind} | {field.name} | {field.writer} | {field.meaning} |"
        for field in fields.REGION
    ]
    found["region"] = _table("| offset | type | field | written by | meaning |", region)
    return found


def with_tables(text: str, current: Mapping[str, str] | None = None) -> str:
    """`text` with what stands between the marks replaced by the tables that they name: `current`, or
    `tables()`.

    Raises:
        ValueError: a mark names no table, or a table has no mark.
    """
    current = tables() if current is None else current
    named = [match[2] for match in _MARKED.finditer(text)]
    if sorted(named) != sorted(current):
        raise ValueError(f"marks for {sorted(named)}, expected one for each of {sorted(current)}")
    return _MARKED.sub(lambda match: f"{match[1]}{current[match[2]]}{match[3]}", text)


def _fields(layout: tuple[Field, ...]) -> str:
    rows = [f"| {field.offset} | {_type(field)} | {field.name} | {field.meaning} |" for field in layout]
    return _table("| offset | type | field | meaning |", rows)


def _type(field: Field) -> str:
    if isinstance(field.count, str):
        return f"{field.kind}[{_SYMBOLS[field.count]}]"
    return field.kind if field.count == 1 else f"{field.kind}[{field.count}]"


def _table(head: str, rows: list[str]) -> str:
    rule = "|" + "---|" * (head.count("|") - 1)
    return "\n".join([head, rule, *rows]) + "\n"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text("utf-8")), "utf-8")
