"""How often, and for how long, the machine takes a core away from a thread that never lets go of it."""

from __future__ import annotations

import os
from typing import Final

from sigd.daemon.doctor.finding import Finding
from sigd.daemon.runtime.hiccups import Hiccups, spin

BUDGET_NS: Final = 100_000
CHECK: Final = "hiccups"


def measure_on(cpu: int, seconds: float) -> Hiccups | None:
    """Spin on one core; None where this process may not run there. Gaps are those longer than BUDGET_NS."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        return None
    try:
        return spin(round(seconds * 1e9), BUDGET_NS + 1)
    finally:
        os.sched_setaffinity(0, before)


def late_share(hiccups: Hiccups) -> float:
    """The share of moments from which nothing can be done within the budget, because the core is away for
    longer: a request that comes at such a moment is late whatever the daemon does."""
    return (hiccups.sum_ns - hiccups.gaps * BUDGET_NS) / hiccups.spun_ns


def judge(cpu: int, hiccups: Hiccups | None) -> Finding:
    """A machine that is late by itself for 1% of all moments cannot answer 99% of requests within the
    budget."""
    if hiccups is None:
        return Finding(CHECK, "skip", f"this process may not run on CPU {cpu}")
    seen = (
        f"CPU {cpu} spun for {hiccups.spun_ns / 1e9:.1f} s: the longest gap"
        f" {hiccups.worst_ns / 1000:,.0f} us, {hiccups.gaps:,} over {BUDGET_NS / 1000:.0f} us"
    )
    if not hiccups.gaps:
        return Finding(CHECK, "ok", seen)
    share = late_share(hiccups)
    late = (
        f"By itself the machine is late for {share:.4%} of all moments; that is the least share of"
        " requests over 100 us, whatever the daemon does."
    )
    fix = ("# fix what is found above, then measure again",)
    return Finding(CHECK, "fail" if share >= 0.01 else "warn", seen, late, fix)
