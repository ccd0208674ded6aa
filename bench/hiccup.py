"""A hiccup meter of the machine itself: how long a core is taken from a thread that never lets go of it.

Nothing of sigd runs while it measures, so what it finds (the hypervisor, interrupts, other processes) is the
floor
under every worst case: a latency no longer than the worst hiccup says nothing about the daemon.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sigd.bench.errors import PeerFailed
from sigd.bench.load.contract import HICCUP_NS
from sigd.bench.native.build import NativePrograms
from sigd.bench.pinning import pinned
from sigd.daemon.runtime.hiccups import spin


@dataclass(frozen=True)
class Hiccups:
    """What one core did.

    Attributes:
        cpu: its number; None where the thread was not pinned.
        spun_ns: how long was looked.
        gaps: gaps of HICCUP_NS or more between two readings of the clock.
        sum_ns: of those gaps.
        worst_ns: the longest gap of all.
        clock_cost_ns: median cost of one reading of the clock.
    """

    cpu: int | None
    spun_ns: int
    gaps: int
    sum_ns: int
    worst_ns: int
    clock_cost_ns: float


def measure(cpus: Sequence[int | None], seconds: float, programs: NativePrograms | None) -> list[Hiccups]:
    """Spin on each of the cores for a while: all at once with the native program, else in this thread in
    turn.

    Raises:
        PeerFailed: the native program did not run.
    """
    if programs is None:
        return [_in_this_thread(cpu, seconds) for cpu in cpus]
    running = [
        subprocess.Popen(
            [programs.path("hiccup"), str(seconds), str(HICCUP_NS), str(-1 if cpu is None else cpu)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for cpu in cpus
    ]
    return [_reported(process, cpu) for process, cpu in zip(running, cpus, strict=True)]


def _reported(process: subprocess.Popen[str], cpu: int | None) -> Hiccups:
    out, err = process.communicate()
    if process.returncode != 0:
        raise PeerFailed(f"the hiccup meter ended with {process.returncode}: {err.strip() or 'no message'}")
    spun_ns, _readings, gaps, sum_ns, worst_ns, cost_ns = out.split()
    return Hiccups(cpu, int(spun_ns), int(gaps), int(sum_ns), int(worst_ns), float(cost_ns))


def _in_this_thread(cpu: int | None, seconds: float) -> Hiccups:
    with pinned(cpu):
        cost_ns = clock_cost_ns(time.monotonic_ns)
        found = spin(round(seconds * 1e9), HICCUP_NS)
    return Hiccups(cpu, found.spun_ns, found.gaps, found.sum_ns, found.worst_ns, cost_ns)


def clock_cost_ns(clock_ns: Callable[[], int]) -> float:
    """Median cost of one reading of the clock."""
    costs = []
    for _ in range(101):
        begin_ns = clock_ns()
        costs.append(clock_ns() - begin_ns)
    return float(sorted(costs)[50])
