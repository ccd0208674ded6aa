"""Which cores the daemon and the client get, and how a thread is put on one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def choose_cores(
    allowed: Sequence[int], core_of: dict[int, int] | None = None, lanes: Sequence[int] = ()
) -> tuple[int | None, int | None]:
    """The core for the daemon's loop and the one for the client: two that share no execution units, if there
    are two.

    Args:
        allowed: the CPU numbers that may be used.
        core_of: the physical core of each CPU; None reads it from /sys.
        lanes: the CPUs of the daemon's lanes, which answer in place of the loop: the client keeps off their
            physical cores. The loop, which sleeps, gets what is left, or the client's.

    Returns:
        (daemon, client); (None, None) where there is only one CPU, which the scheduler then divides.
    """
    free = [cpu for cpu in allowed if cpu not in lanes]
    if len(allowed) < 2 or not free:
        return None, None
    cores = {cpu: _physical_core(cpu) for cpu in {*allowed, *lanes}} if core_of is None else core_of
    # The highest numbers: interrupts and housekeeping gather on the lowest.
    if lanes:
        client = _apart(free, lanes, cores)
        rest = [cpu for cpu in free if cpu != client]
        return (_apart(rest, (client, *lanes), cores) if rest else client), client
    daemon = max(free)
    return daemon, _apart([cpu for cpu in free if cpu != daemon], [daemon], cores)


def _apart(cpus: Sequence[int], busy: Sequence[int], cores: dict[int, int]) -> int:
    """The highest of `cpus` on none of the physical cores of `busy`, where there is one."""
    taken = {cores[cpu] for cpu in busy}
    return max([cpu for cpu in cpus if cores[cpu] not in taken] or cpus)


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
