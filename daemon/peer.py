"""What a session asks of the transport that carries it."""

from __future__ import annotations

from typing import Protocol


class Peer(Protocol):
    """The transport's side of a session."""

    def send(self, data: memoryview | bytes) -> None:
        """Send now, or keep a copy until the peer reads; past its bound the transport aborts the connection."""

    def finish(self) -> None:
        """Send what is kept, then close."""

    def pause_reading(self) -> None:
        """Hand over no more bytes until resume_reading()."""

    def resume_reading(self) -> None:
        """Go on after pause_reading()."""

    def yield_turn(self) -> None:
        """Call the session's `turn()` in the loop's next round."""
