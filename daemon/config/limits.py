"""The bounds of admission. Everything that can grow has one; past it the answer is BUSY, or the connection
ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FEW_ROWS: Final = 16
"""A client with at most so many requests unanswered is served past rows_pending_max too, and in a
batch whole."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one daemon.

    Attributes:
        in_flight_max: requests that one connection may have unanswered; more are answered BUSY.
        rows_pending_max: the same over all connections of a model; each may have `FEW_ROWS` past it.
        inbox_bytes_max: most memory for one connection's unanswered requests; large requests lower
            in_flight_max.
        unsent_bytes_max: answers kept for a client that does not read; past it the connection is cut off.
        connections_max: clients at a time; more are rejected with code 8.
        connections_per_user_max: the same of one user, so that no user takes every place.
        hello_timeout_s: a connection without its Hello by then is closed.
        drain_timeout_s: longest wait for answers and clients when the daemon stops.
        daemon_pid: this process, as clients are told.
    """

    in_flight_max: int = 256
    rows_pending_max: int = 16_384
    inbox_bytes_max: int = 4 << 20
    unsent_bytes_max: int = 1 << 20
    connections_max: int = 1024
    connections_per_user_max: int = 1000
    hello_timeout_s: float = 5.0
    drain_timeout_s: float = 5.0
    history_instruments_max: int = 0
    daemon_pid: int = 0

    def in_flight_rows(self, request_bytes: int) -> int:
        """in_flight_max for requests of that size, at least 1."""
        return max(1, min(self.in_flight_max, self.inbox_bytes_max // request_bytes))


DEFAULTS: Final = Limits()
