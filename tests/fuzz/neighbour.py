"""A client that behaves, and how long each of its requests took that was asked while others attacked.

On a busy machine a request also takes as long as the daemon, or this client, waits for a processor. The
kernel counts that for each thread (/proc/*/schedstat), so it is taken off: what is left is what the daemon
itself did, or waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

from sigd.wire.client import Client, connect


@dataclass(frozen=True, order=True)
class Asked:
    """One request: how long its answer took, less what two threads waited for a processor meanwhile; and with
    that."""

    own_us: float
    whole_us: float


class Neighbour:
    """Asks over the stream, one request at a time; use `open()`."""

    def __init__(self, client: Client, daemon_delays: int, delays: int) -> None:
        self._client = client
        self._delays = (daemon_delays, delays)
        self._features = [0.5] * client.welcome.features

    @classmethod
    @contextmanager
    def open(cls, path: str, daemon_pid: int, *, spin: bool) -> Iterator[Self]:
        """Connect, and ask often enough for everything to be warm."""
        with ExitStack() as stack:
            client = stack.enter_context(connect(path, client_name="neighbour", spin=spin, timeout_s=30))
            threads = (f"/proc/{daemon_pid}/task/{daemon_pid}/schedstat", "/proc/thread-self/schedstat")
            delays = [os.open(thread, os.O_RDONLY | os.O_CLOEXEC) for thread in threads]
            for descriptor in delays:
                stack.callback(os.close, descriptor)
            neighbour = cls(client, *delays)
            for _ in range(200):
                neighbour.ask()
            yield neighbour

    def ask(self) -> Asked:
        """Ask once; AssertionError where the answer is not as it should be."""
        waited_ns = self._waited_ns()
        start_ns = time.monotonic_ns()
        response = self._client.request(self._features)
        whole_ns = time.monotonic_ns() - start_ns
        waited_ns = self._waited_ns() - waited_ns
        assert response.ok, response
        return Asked(max(0, whole_ns - waited_ns) / 1000, whole_ns / 1000)

    def _waited_ns(self) -> int:
        """The second number of a schedstat: nanoseconds on a run queue
        (Documentation/scheduler/sched-stats)."""
        return sum(int(os.pread(delays, 100, 0).split()[1]) for delays in self._delays)
