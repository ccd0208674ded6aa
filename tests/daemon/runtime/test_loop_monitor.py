"""What holds the loop up, with a clock and a loop of the test's own; what the kernel tells."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from sigd.daemon.runtime import loop_monitor
from sigd.daemon.runtime.loop_monitor import LOOK_S, STALL_NS, GarbageWatch, LoopWatch

LOOK_NS = round(LOOK_S * 1e9)


class FakeLoop:
    """Keeps the one timer that is armed."""

    def __init__(self) -> None:
        self.armed: Callable[[], None] | None = None

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Any:
        assert delay_s == LOOK_S
        self.armed = call
        return self

    def cancel(self) -> None:
        self.armed = None

    def fire(self) -> None:
        call, self.armed = self.armed, None
        assert call is not None
        call()


def test_late_looks_are_stalls() -> None:
    loop, now_ns = FakeLoop(), 5_000_000_000
    watch = LoopWatch(cast(asyncio.AbstractEventLoop, loop), lambda: now_ns)
    watch.start()
    for late_ns in (-900_000, 0, STALL_NS, STALL_NS + 1, 7_000_000, 0):
        now_ns += LOOK_NS + late_ns
        loop.fire()
    assert watch.looks == 6
    assert watch.stalls == 2
    assert watch.stalled_ns == STALL_NS + 1 + 7_000_000
    assert watch.worst_ns == 7_000_000
    watch.stop()
    assert loop.armed is None


def test_a_watch_that_was_not_started_may_be_stopped() -> None:
    LoopWatch(cast(asyncio.AbstractEventLoop, FakeLoop())).stop()


def test_runs_of_the_collector() -> None:
    now_ns = 0

    def clock() -> int:
        nonlocal now_ns
        now_ns += 1000
        return now_ns

    watch = GarbageWatch(clock)
    watch.start()
    try:
        gc.collect()
        gc.collect()
    finally:
        watch.stop()
    gc.collect()
    assert (watch.collections, watch.paused_ns) == (2, 2000)


def test_pages_that_are_touched_first_are_faults() -> None:
    # A process of its own: in this one memory may be locked by now, or have been touched before.
    program = (
        "import mmap; from sigd.daemon.runtime import loop_monitor\n"
        "before, pages = loop_monitor.usage(), mmap.mmap(-1, 1 << 20)\n"
        "pages[::4096] = bytes(256)\n"
        "print(loop_monitor.usage().minor_faults - before.minor_faults)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, timeout=60, check=True)
    assert int(done.stdout) > 0


def test_what_the_kernel_counts() -> None:
    before = loop_monitor.usage()
    waited_s = loop_monitor.runnable_s()
    after = loop_monitor.usage()
    assert after.minor_faults >= before.minor_faults
    assert after.cpu_s >= before.cpu_s
    assert after.major_faults >= before.major_faults
    assert after.voluntary_switches + after.involuntary_switches > 0
    if Path("/proc/thread-self/schedstat").exists():
        now_s = loop_monitor.runnable_s()
        assert waited_s is not None
        assert now_s is not None
        assert now_s >= waited_s >= 0


def test_a_kernel_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loop_monitor, "SCHEDULER", str(tmp_path / "none"))
    assert loop_monitor.runnable_s() is None
