"""How often, and for how long, the machine takes a core away from a thread that never lets go of it."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sigd.daemon.doctor.finding import Finding

BUDGET_NS: Final = 100_000
CHECK: Final = "hiccups"


@dataclass(frozen=True)
class Hiccups:
    """What a spinning thread saw.

    Attributes:
        spun_ns: how long it spun.
        readings: readings of the clock.
        worst_ns: the longest gap between two of them.
        over: gaps longer than BUDGET_NS.
        late_ns: the sum of what those gaps exceeded BUDGET_NS by.
    """

    spun_ns: int
    readings: int
    worst_ns: int
    over: int
    late_ns: int

    @property
    def late_share(self) -> float:
        """The share of moments from which nothing can be done within the budget, because the core is away for
        longer: a request that comes at such a moment is late whatever the daemon does."""
        return self.late_ns / self.spun_ns


def measure(seconds: float, clock_ns: Callable[[], int] = time.monotonic_ns) -> Hiccups:
    """Spin on the clock for `seconds` on the core that this thread is on."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        readings = worst_ns = over = late_ns = 0
        begin_ns = last_ns = clock_ns()
        end_ns = begin_ns + int(seconds * 1e9)
        while last_ns < end_ns:
            now_ns = clock_ns()
            gap_ns = now_ns - last_ns
            worst_ns = max(worst_ns, gap_ns)
            if gap_ns > BUDGET_NS:
                over += 1
                late_ns += gap_ns - BUDGET_NS
            last_ns = now_ns
            readings += 1
    finally:
        if collecting:
            gc.enable()
    return Hiccups(last_ns - begin_ns, readings, worst_ns, over, late_ns)


def measure_on(cpu: int, seconds: float) -> Hiccups | None:
    """`measure` on one core; None where this process may not run there."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        return None
    try:
        return measure(seconds)
    finally:
        os.sched_setaffinity(0, before)


def judge(cpu: int, hiccups: Hiccups | None) -> Finding:
    """A machine that is late by itself for 1% of all moments cannot answer 99% of requests within the
    budget."""
    if hiccups is None:
        return Finding(CHECK, "skip", f"this process may not run on CPU {cpu}")
    seen = (
        f"CPU {cpu} spun for {hiccups.spun_ns / 1e9:.1f} s: the longest gap {hiccups.worst_ns / 1000:,.0f}"
        " us,"
        f" {hiccups.over:,} over {BUDGET_NS / 1000:.0f} us"
    )
    if not hiccups.over:
        return Finding(CHECK, "ok", seen)
    late = (
        f"By itself the machine is late for {hiccups.late_share:.4%} of all moments; that is the least share"
        " of"
        " requests over 100 us, whatever the daemon does."
    )
    fix = ("# fix what is found above, then measure again",)
    return Finding(CHECK, "fail" if hiccups.late_share >= 0.01 else "warn", seen, late, fix)
