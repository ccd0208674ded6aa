"""What a session asks of the transport that carries it, and of what records it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sigd.daemon.serving.session import Session
    from sigd.wire.region import RegionLayout


class Peer(Protocol):
    """The transport's side of a session."""

    def send(self, data: memoryview | bytes) -> None:
        """Send now, or keep a copy until the peer reads; past its bound the transport aborts the
        connection."""

    def send_descriptors(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        """The first thing that is sent, and descriptors that come with it; the connection is aborted where it
        fails."""

    def why_no_descriptors(self) -> str:
        """Why descriptors would not reach the client; empty where they would, as far as can be told."""

    def finish(self) -> None:
        """Send what is kept, then close."""

    def pause_reading(self) -> None:
        """Hand over no more bytes until resume_reading()."""

    def resume_reading(self) -> None:
        """Go on after pause_reading()."""

    def yield_turn(self) -> None:
        """Call the session's `turn()` in the loop's next round."""


class Rings(Protocol):
    """The rings of one session: its requests come from there and its answers go there, past the `Peer`.

    Attributes:
        layout: of their region.
        descriptors: for the client: region, request doorbell, response doorbell.
    """

    @property
    def layout(self) -> RegionLayout: ...

    @property
    def descriptors(self) -> tuple[int, ...]: ...

    def start(self) -> None:
        """The client has been told: hand over what it publishes to `Session.took()`."""

    def detach(self) -> None:
        """Let go of the batcher's model: from now on everything goes the batch path."""

    def attach(self) -> None:
        """Have a fast path to the batcher's model."""

    def recall(self) -> None:
        """Take them back from a lane: from now on all that comes is handed over."""

    def take(self, now_ns: int, rows_seen: int) -> bool:
        """Hand over at most `rows_seen` requests that were seen before `now_ns`; False where none was
        there."""

    def send(self, data: memoryview) -> None:
        """Publish answers; there is room for them."""

    def stop(self) -> None:
        """Hand over nothing more."""

    def close(self) -> None:
        """Give the memory back. Nothing else is called after it."""


OpenRings = Callable[["Session", int, int], Rings]
"""Makes the rings of a session, with so many slots and features a request. Raises FrameError with the code
that refuses them."""

Record = Callable[[], None]
"""Records the request that ran alone, at the start of the inbox, and its answer."""
RecordInRing = Callable[[int, int, int, int, int, int], None]
"""As `Record`, of a request that came through a ring: sequence, client_time_ns, receive_time_ns,
send_time_ns, instrument with what is above it in the request, outcome. The slots are not looked at again:
their client can write to them."""


class SessionTap(Protocol):
    """Records one client: called after its answers have been sent, while their bytes are still there."""

    def fast_path(self) -> Record: ...

    def fast_path_in_ring(self, request: bytearray, outputs: memoryview) -> RecordInRing: ...

    def record(self, rows: int, batch: int) -> None: ...


class SessionTaps(Protocol):
    """Makes the tap of each session."""

    def open(self, session: Session, *, in_rings: bool) -> SessionTap: ...
