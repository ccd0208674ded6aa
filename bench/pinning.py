"""Which cores the daemon and the client get, and how a thread is put on one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def choose_cores(
    allowed: Sequence[int], core_of: dict[int, int] | None = None
) -> tuple[int | None, int | None]:
    """The core for the daemon and the one for the client: two that share no execution units, if there are
    two.

    Args:
        allowed: the CPU numbers that may be used.
        core_of: the physical core of each CPU; None reads it from /sys.

    Returns:
        (daemon, client); (None, None) where there is only one CPU, which the scheduler then divides.
    """
    if len(allowed) < 2:
        return None, None
    cores = {cpu: _physical_core(cpu) for cpu in allowed} if core_of is None else core_of
    # The highest numbers: interrupts and housekeeping gather on the lowest.
    daemon = max(allowed)
    others = [cpu for cpu in allowed if cpu != daemon]
    apart = [cpu for cpu in others if cores[cpu] != cores[daemon]]
    return daemon, max(apart or others)


def allowed_cpus() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Keep this thread on one core while the block runs; None leaves it alone."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _physical_core(cpu: int) -> int:
    """The lowest CPU among those that share a physical core with `cpu`."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        first = siblings.read_text().replace("-", ",").split(",")[0]
    except OSError:
        return cpu
    return int(first)
