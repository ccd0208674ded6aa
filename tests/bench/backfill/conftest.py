"""A plan over captures of small synthetic markets."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.bench.backfill.captures import START_NS, synthetic_events, write_capture, write_plan


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of two symbols with two dates each, 5,000 events a piece."""
    for number, symbol in enumerate(("aaa", "bbb")):
        for day, date in enumerate(("day1", "day2")):
            events = synthetic_events(10 * number + day, 5_000, START_NS + day * 86_400 * 10**9)
            write_capture(tmp_path / f"{symbol}_{date}.gz", events, symbol)
    return write_plan(tmp_path / "plan.toml", ("aaa", "bbb"), ("day1", "day2"))
