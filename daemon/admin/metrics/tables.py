"""The table of docs/metrics.md, made from the families.

`python -m sigd.daemon.admin.metrics.tables docs/metrics.md` writes it anew, see `sigd.wire.schema.tables`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sigd.daemon.admin.metrics.families import FAMILIES
from sigd.daemon.admin.metrics.family import Family, Kind
from sigd.wire.schema.tables import with_tables


def table() -> str:
    """All families, in Markdown."""
    rows = [
        f"| `{shown_name(family)}` | {family.kind.value} | {', '.join(family.labels)} | {family.words} |"
        for family in FAMILIES
    ]
    return "\n".join(["| name | kind | labels | what |", "|---|---|---|---|", *rows]) + "\n"


def shown_name(family: Family) -> str:
    """As Prometheus shows it: counters end in _total."""
    return family.name + ("_total" if family.kind is Kind.COUNTER else "")


def with_table(text: str) -> str:
    """`text` with the current table. Raises ValueError where it has no place for it."""
    return with_tables(text, {"metrics": table()})


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text("utf-8")), "utf-8")
