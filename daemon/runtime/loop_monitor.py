"""How the loop and the process fare: what holds the loop up, and what the kernel did to it.

The loop's stalls are sampled by a timer: a clock that is read in every round of the loop would cost more than
it may, and a timer sees the loop as a request does, also where it sleeps.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final, NamedTuple

LOOK_S: Final = 0.01
STALL_NS: Final = 1_000_000
"""A timer of the loop is exact to 1 ms, and early rather than late."""
SCHEDULER: Final = "/proc/thread-self/schedstat"


class LoopWatch:
    """Notes how late the loop comes to a timer, a hundred times a second.

    Attributes:
        looks: how often it has looked.
        stalls: looks that came more than 1 ms late.
        stalled_ns: how late those came, together.
        worst_ns: the latest of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], int] = monotonic_ns) -> None:
        self._loop = loop
        self._clock = clock
        self._due_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self.looks = 0
        self.stalls = 0
        self.stalled_ns = 0
        self.worst_ns = 0

    def start(self) -> None:
        """Begin."""
        self._arm(self._clock())

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, now_ns: int) -> None:
        self._due_ns = now_ns + round(LOOK_S * 1e9)
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        now_ns = self._clock()
        late_ns = now_ns - self._due_ns
        self.looks += 1
        if late_ns > STALL_NS:
            self.stalls += 1
            self.stalled_ns += late_ns
            self.worst_ns = max(self.worst_ns, late_ns)
        self._arm(now_ns)


class GarbageWatch:
    """Notes runs of the garbage collector, which is off while a daemon serves: any run is news.

    Attributes:
        collections: how often it ran.
        paused_ns: how long all its runs took.
    """

    def __init__(self, clock: Callable[[], int] = monotonic_ns) -> None:
        self._clock = clock
        self._began_ns = 0
        self.collections = 0
        self.paused_ns = 0

    def start(self) -> None:
        """Begin."""
        gc.callbacks.append(self._note)

    def stop(self) -> None:
        """End."""
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, _details: dict[str, Any]) -> None:
        if phase == "start":
            self._began_ns = self._clock()
        else:
            self.collections += 1
            self.paused_ns += self._clock() - self._began_ns


class Usage(NamedTuple):
    """What the kernel has counted since the start: CPU time of the process, the rest of the calling thread.

    Attributes:
        minor_faults, major_faults: pages that it had to wait for, from memory and from a disk.
        voluntary_switches, involuntary_switches: how often it slept, and how often it was made to give way.
    """

    cpu_s: float
    minor_faults: int
    major_faults: int
    voluntary_switches: int
    involuntary_switches: int


def usage() -> Usage:
    """As of now."""
    process = resource.getrusage(resource.RUSAGE_SELF)
    thread = resource.getrusage(resource.RUSAGE_THREAD)
    return Usage(
        process.ru_utime + process.ru_stime,
        thread.ru_minflt,
        thread.ru_majflt,
        thread.ru_nvcsw,
        thread.ru_nivcsw,
    )


def runnable_s() -> float | None:
    """How long the calling thread could have run while another had its core; None where the kernel does not
    tell."""
    try:
        descriptor = os.open(SCHEDULER, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(os.read(descriptor, 128).split()[1]) / 1e9
    finally:
        os.close(descriptor)
