"""The table of GPU faults names its tests, and they exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_every_row_of_the_fault_table_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "gpu-faults.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    defined = {
        name
        for file in (ROOT / "tests").glob("**/test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert len(rows) >= 10
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split("|")[4])
        assert named, row
        assert set(named) <= defined, row
