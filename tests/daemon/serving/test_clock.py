"""A wall clock that is set, by a person or by NTP, changes nothing that is served: nothing that decides looks
at it."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

ROOT = Path(__file__).resolve().parents[3]
WALL_CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "CLOCK_REALTIME", "localtime", "gmtime", "ctime"}
OF_PEOPLE = {
    "daemon/admin/metrics/observer.py": "since when a daemon has been up, for readers of its metrics",
    "daemon/recording/recorder.py": "a recording's name",
    "daemon/recording/segments.py": "when a recorded block was, for its readers",
    "daemon/reload/remembered.py": "when a reload was remembered",
    "models/build/record.py": "when an engine was built",
}
"""Files that tell people what time it is."""


def wall_clock_reads(tree: ast.Module) -> Iterator[str]:
    """Names of a wall clock, taken from a module or a class that has one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("time", "datetime", "date") and node.attr in WALL_CLOCKS:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names if alias.name in WALL_CLOCKS)


@pytest.mark.parametrize("room", ["daemon", "models", "wire"])
def test_only_what_is_told_to_people_has_the_time_of_day(room: str) -> None:
    files = [path for path in (ROOT / room).rglob("*.py") if "training" not in path.parts]
    assert files
    found = {
        str(path.relative_to(ROOT)): reads
        for path in files
        if (reads := list(wall_clock_reads(ast.parse(path.read_text()))))
    }
    assert found.keys() == {path for path in OF_PEOPLE if path.startswith(room)}, found


def test_the_loops_timers_are_on_the_steady_clock() -> None:
    """Hello timeouts, the drain's bounds and heartbeats of rings."""
    loop = uvloop.new_event_loop()
    assert loop.time() == pytest.approx(time.monotonic(), abs=60)
    loop.close()
