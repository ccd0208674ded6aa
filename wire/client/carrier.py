"""What carries the frames of a client's session: a stream, or rings in shared memory. One client, either
carrier."""

from __future__ import annotations

from typing import Final, Protocol

from sigd.wire.framer import Frame

POLL_S_MAX: Final = 60.0
"""poll() has no infinity; a longer wait asks again."""


class Carrier(Protocol):
    """Made after the handshake. Answers go into the session's ResponseInbox, everything else comes by
    `next_control`.

    Raises:
        FrameError: from each call but `fileno` and `close`, where the daemon left the contract.
        EOFError: from `pull`, where the daemon closed the connection. What came before is in the inbox.
        OSError: from `pull` and the two that send, where the connection is lost.
    """

    def fileno(self) -> int:
        """The socket; -1 once it is closed."""

    def offer_requests(self, frames: memoryview | bytes) -> int:
        """Send whole requests, side by side, as far as there is room; how many bytes were taken."""

    def offer_control(self, frame: memoryview | bytes) -> int:
        """Send a control frame; how many bytes were taken. What is left must be offered before anything
        else."""

    def pull(self) -> bool:
        """Take in what has arrived; False where nothing has."""

    def next_control(self) -> Frame | None:
        """The next frame that is no answer, or None. To be asked after each `pull` until it is None."""

    def wait(self, timeout_s: float) -> None:
        """Return when something may have come, when there may be room for what was not taken, or in time."""

    def close(self) -> None:
        """Give everything back. Nothing is moved after it; what is in the inbox stays there."""
