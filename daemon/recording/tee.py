"""Two taps on one session, for a model that is recorded and has a shadow: each answer goes to one, then to
the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigd.daemon.serving.ports import Record, RecordInRing, SessionTap, SessionTaps
    from sigd.daemon.serving.session import Session


class TeeTaps:
    """Makes pairs."""

    def __init__(self, one: SessionTaps, other: SessionTaps) -> None:
        self._one = one
        self._other = other

    def open(self, session: Session, *, in_rings: bool) -> TeeTap:
        """As `Taps.open`."""
        return TeeTap(
            self._one.open(session, in_rings=in_rings), self._other.open(session, in_rings=in_rings)
        )


class TeeTap:
    """One client."""

    __slots__ = ("_one", "_other")

    def __init__(self, one: SessionTap, other: SessionTap) -> None:
        self._one = one
        self._other = other

    def fast_path(self) -> Record:
        """As `Tap.fast_path`."""
        one, other = self._one.fast_path(), self._other.fast_path()

        def record() -> None:
            one()
            other()

        return record

    def fast_path_in_ring(self, request: bytearray, outputs: memoryview) -> RecordInRing:
        """As `Tap.fast_path_in_ring`."""
        one, other = (
            self._one.fast_path_in_ring(request, outputs),
            self._other.fast_path_in_ring(request, outputs),
        )

        def record(
            sequence: int,
            client_time_ns: int,
            receive_time_ns: int,
            send_time_ns: int,
            instrument: int,
            outcome: int,
        ) -> None:
            one(sequence, client_time_ns, receive_time_ns, send_time_ns, instrument, outcome)
            other(sequence, client_time_ns, receive_time_ns, send_time_ns, instrument, outcome)

        return record

    def record(self, rows: int, batch: int) -> None:
        """As `Tap.record`."""
        self._one.record(rows, batch)
        self._other.record(rows, batch)


def tee(one: SessionTaps | None, other: SessionTaps | None) -> SessionTaps | None:
    """One that records with both; None where there is neither."""
    if one is None or other is None:
        return one or other
    return TeeTaps(one, other)
