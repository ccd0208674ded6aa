"""A hiccup meter: how often, and for how long, the machine takes a core away from a thread that never lets go
of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Hiccups:
    """What a spinning thread saw.

    Attributes:
        spun_ns: how long it spun.
        readings: readings of the clock.
        gaps: gaps of `gap_ns` or more between two of them.
        sum_ns: of those gaps.
        worst_ns: the longest gap of all.
    """

    spun_ns: int
    readings: int
    gaps: int
    sum_ns: int
    worst_ns: int


def spin(spin_ns: int, gap_ns: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> Hiccups:
    """Read the clock over and over for `spin_ns`, on the core that this thread is on."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        readings = gaps = sum_ns = worst_ns = 0
        begin_ns = last_ns = clock_ns()
        end_ns = begin_ns + spin_ns
        while last_ns < end_ns:
            now_ns = clock_ns()
            found_ns = now_ns - last_ns
            if found_ns >= gap_ns:
                gaps += 1
                sum_ns += found_ns
            worst_ns = max(worst_ns, found_ns)
            last_ns = now_ns
            readings += 1
    finally:
        if collecting:
            gc.enable()
    return Hiccups(last_ns - begin_ns, readings, gaps, sum_ns, worst_ns)
