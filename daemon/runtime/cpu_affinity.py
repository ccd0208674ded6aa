"""Where work runs that is not the loop's: on other cores than its own, and never with its priority."""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

ISOLATED = Path("/sys/devices/system/cpu/isolated")
ONLINE = Path("/sys/devices/system/cpu/online")


def cores_beside(cpu: int | None, allowed: AbstractSet[int]) -> AbstractSet[int]:
    """The cores for work beside a loop that is pinned to `cpu`.

    Of those that the process was `allowed` when it started; where that is the loop's core alone (CPUAffinity=
    of a unit, which leaves `cpu` None), of all that are online and not isolated, for on isolated ones other
    loops may spin. Without any, the loop's.
    """
    if cpu is None and len(allowed) == 1:
        (cpu,) = allowed
    others = allowed - {cpu}
    if not others:
        others = _listed(ONLINE) - _listed(ISOLATED) - {cpu}
    return others or allowed


def leave_cores(cores: Iterable[int]) -> AbstractSet[int]:
    """Move the calling thread off those cores, where it may use others; the cores that are left to it."""
    allowed = os.sched_getaffinity(0)
    others = allowed - set(cores)
    if not others or others == allowed:
        return allowed
    os.sched_setaffinity(0, others)
    return others


def leave_loop_core(cores: AbstractSet[int], *, idle_priority: bool = False) -> None:
    """Move the calling thread to those cores, with no more than ordinary priority; with idle_priority it
    takes only idle time, and gives way at once. What is not allowed stays as it is: a container may be
    held to fewer cores than it sees, and a sandbox may forbid the call."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE if idle_priority else os.SCHED_OTHER, os.sched_param(0))
    with suppress(OSError):
        # Linux means the calling thread, whose niceness is its own.
        os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
    with suppress(OSError):
        os.sched_setaffinity(0, cores)


def _listed(file: Path) -> set[int]:
    """The cores in a list such as "0-3,8"."""
    try:
        text = file.read_text().strip()
    except OSError:
        return set()
    cores: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores
