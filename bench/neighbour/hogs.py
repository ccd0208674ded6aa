"""Neighbours that run anywhere: one that takes a core, one that takes the memory's bandwidth.

`python -m sigd.bench.neighbour.hogs core --cpu 3`, `... memory --mib 256`. Each works until it is told to
end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count

import click

from sigd.daemon.config.flags import WholeRange

Work = Callable[[], None]
_CORE_STEPS = 200_000


def core_work() -> Work:
    """A stretch of arithmetic that never leaves the core."""

    def work() -> None:
        total = 0
        for number in range(_CORE_STEPS):
            total += number * number

    return work


def memory_work(mib: int) -> Work:
    """A copy between two buffers that are larger than the caches together."""
    import numpy as np

    source = np.ones(mib << 17, dtype=np.float64)
    target = np.empty_like(source)

    def work() -> None:
        np.copyto(target, source)

    return work


def repeat(work: Work, times: int | None = None) -> None:
    """Do it over and over, or so many times."""
    for _ in count() if times is None else range(times):
        work()


@click.command(
    epilog="""\b
Examples:
  sigd bench --neighbour "python -m sigd.bench.neighbour.hogs core --cpu 3"
  sigd bench --neighbour "python -m sigd.bench.neighbour.hogs memory --mib 512"

\b
Exit codes: it works until it is ended."""
)
@click.argument("what", type=click.Choice(["core", "memory"]))
@click.option("--cpu", type=WholeRange(0), help="Stay on this core.  [default: where the scheduler puts it]")
@click.option("--mib", type=WholeRange(1), default=256, show_default=True, help="Of each buffer of memory.")
def main(what: str, cpu: int | None, mib: int) -> None:
    """Take a core, or the memory's bandwidth, from others."""
    if cpu is not None:
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as error:
            raise click.UsageError(
                f"--cpu {cpu}: {error.strerror}; expected one of this process's cores"
            ) from error
    repeat(core_work() if what == "core" else memory_work(mib))


if __name__ == "__main__":
    main(prog_name="python -m sigd.bench.neighbour.hogs")
