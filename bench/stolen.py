"""How much of a run the machine took away from it: what a hypervisor stole, and what other processes had
instead.

A p99 says nothing of the daemon where more than one part in a hundred of its time was not its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SHARE_MAX: Final = 0.01
"""Above this share a run that is over its budget, or misses its rate, says nothing: a hundredth is what a
99th percentile leaves out."""
LANE_THREAD: Final = "sigd-lane"
"""What the daemon calls the thread of a lane."""
_STEAL_FIELD: Final = 8
_STEAL_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Stolen:
    """Shares of the run's time.

    Attributes:
        daemon_waited: the daemon's loop, or the lane that waited most, was ready to run, and another thread
            had its core.
        hypervisor: taken from one of the run's cores by the hypervisor; the larger share of its cores.
        client: gaps that the spinning client saw, whatever they came from.
    """

    daemon_waited: float = 0.0
    hypervisor: float = 0.0
    client: float = 0.0

    @property
    def largest(self) -> float:
        """What the verdict goes by. The three may be one and the same, so they are not added."""
        return max(self.daemon_waited, self.hypervisor, self.client)


class StolenWatch:
    """Reads the kernel's counts when the warm-up ends, and again when asked.

    Args:
        daemon_pid: whose main thread is the loop; None where it is not on this machine.
        cpus: of the run; empty watches all.
        proc: where the kernel's counts are.
        lanes: the daemon's lanes answer, and not its loop.
    """

    def __init__(
        self,
        daemon_pid: int | None,
        cpus: Sequence[int],
        proc: Path = Path("/proc"),
        *,
        lanes: bool = False,
    ) -> None:
        self._pid = daemon_pid
        self._lanes = lanes
        self._cpus = cpus
        self._proc = proc
        self._begun: tuple[dict[str, int], dict[int, int]] | None = None

    def warmed_up(self) -> None:
        """The warm-up has ended; only the first call counts."""
        if self._begun is None:
            self._begun = (self._waited_ns(), self._stolen_ticks())

    def found(self, elapsed_ns: int, client_gaps_ns: int) -> Stolen:
        """What was taken since then, of a run of that length; `client_gaps_ns` is what the client itself
        saw."""
        if self._begun is None or elapsed_ns <= 0:
            return Stolen()
        waited_before, ticks_before = self._begun
        waited, ticks = self._waited_ns(), self._stolen_ticks()
        waited_ns = max((ns - waited_before.get(thread, ns) for thread, ns in waited.items()), default=0)
        stolen = max((ticks[cpu] - ticks_before.get(cpu, ticks[cpu]) for cpu in ticks), default=0)
        return Stolen(
            daemon_waited=waited_ns / elapsed_ns,
            hypervisor=stolen / _STEAL_TICKS_PER_S * 1e9 / elapsed_ns,
            client=client_gaps_ns / elapsed_ns,
        )

    def _waited_ns(self) -> dict[str, int]:
        """Time that each of the daemon's threads that answer has waited for a core."""
        if self._pid is None:
            return {}
        threads = self._proc / str(self._pid) / "task"
        waited = {}
        try:
            for thread in self._lane_threads(threads) if self._lanes else [threads / str(self._pid)]:
                waited[thread.name] = int((thread / "schedstat").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return {}
        return waited

    @staticmethod
    def _lane_threads(threads: Path) -> list[Path]:
        return [
            thread for thread in threads.iterdir() if (thread / "comm").read_text().strip() == LANE_THREAD
        ]

    def _stolen_ticks(self) -> dict[int, int]:
        try:
            lines = (self._proc / "stat").read_text().splitlines()
        except OSError:
            return {}
        ticks = {}
        for name, *counts in (line.split() for line in lines if line.startswith("cpu")):
            number = name.removeprefix("cpu")
            if number and len(counts) >= _STEAL_FIELD and (not self._cpus or int(number) in self._cpus):
                ticks[int(number)] = int(counts[_STEAL_FIELD - 1])
        return ticks
