"""A client's session under way: frames go out and come in through its carrier, and a caller that must wait
waits here."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable
from typing import Final

from sigd.wire.client.carrier import Carrier
from sigd.wire.client.conversation import Conversation
from sigd.wire.errors import FrameError, ReceiveTimeout
from sigd.wire.messages import Goodbye

_DAEMON_CLOSED: Final = "the daemon closed the connection"

Frames = memoryview | bytes


class Exchange:
    """Whatever fails ends the conversation, and its error is what is raised.

    Attributes:
        carrier, talk: what moves the frames, and what they say.
    """

    def __init__(self, carrier: Carrier, talk: Conversation, timeout_s: float) -> None:
        """`timeout_s`: where a call names none."""
        self.carrier = carrier
        self.talk = talk
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        _exchanges.add(self)
        self._hear()

    def deadline_s(self, timeout_s: float | None) -> float:
        """On time.monotonic()."""
        return time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)

    def advance(self, deadline_s: float, so_far: str) -> None:
        """Read what has arrived, or wait for something to arrive.

        Raises:
            ReceiveTimeout: the deadline has passed; `so_far` stands in it.
            SessionError: the session is over.
        """
        talk = self.talk
        if talk.over:
            raise talk.error()
        if self.read():
            return
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise ReceiveTimeout(
                f"{so_far} within the time given; {len(talk.unanswered)} requests are unanswered"
            )
        self._wait(left_s)

    def read(self) -> bool:
        """Take in what has arrived; False where nothing has, or nothing can any more."""
        talk = self.talk
        if talk.over:
            return False
        try:
            if not self.carrier.pull():
                return False
        except EOFError:
            talk.closed(_DAEMON_CLOSED)
        except OSError as error:
            talk.closed(f"{_DAEMON_CLOSED} ({error.strerror})")
        except FrameError as error:
            talk.no_frame(error)
        else:
            self._hear()
        return True

    def transmit(self, offer: Callable[[Frames], int], frames: Frames) -> None:
        """Send all of it, through one of the carrier's two ways. Raises SessionError where the session is
        over."""
        if self.talk.over:
            raise self.talk.error()
        try:
            taken_bytes = self._offer(offer, frames)
            if taken_bytes < len(frames):
                self._transmit_rest(offer, memoryview(frames)[taken_bytes:])
        except BaseException:
            # Half a frame may be out, so nothing can follow it; a Ctrl-C ends here too.
            if not self.talk.over:
                self.talk.closed("a send was broken off")
            self.carrier.close()
            raise

    def close(self) -> None:
        """End at once, with a Goodbye where it can be said without waiting."""
        if not self.talk.over:
            with contextlib.suppress(OSError):
                self.carrier.offer_control(Goodbye().encode())
            self.talk.closed("this client was closed")
        self.carrier.close()

    def forked(self) -> None:
        """In the child after fork(): two processes on one session would take each other's answers. Lets go of
        the descriptors and the memory; the parent's stay as they are."""
        if not self.talk.over:
            self.talk.forked(self._pid)
        self.carrier.close()

    def _transmit_rest(self, offer: Callable[[Frames], int], left: memoryview) -> None:
        """There is no room: read while waiting for some, or two sides that only write would wait for ever."""
        talk = self.talk
        deadline_s = self.deadline_s(None)
        while left:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                talk.closed(f"the daemon made no room within {self._timeout_s} s")
                raise talk.error()
            self._wait(left_s)
            self.read()
            if talk.over:
                raise talk.error()
            if taken_bytes := self._offer(offer, left):
                left = left[taken_bytes:]
                deadline_s = self.deadline_s(None)

    def _offer(self, offer: Callable[[Frames], int], frames: Frames) -> int:
        try:
            return offer(frames)
        except (OSError, FrameError) as error:
            # The daemon may have said why before it closed.
            while self.read():
                pass
            talk = self.talk
            if not talk.over:
                if isinstance(error, FrameError):
                    talk.no_frame(error)
                else:
                    talk.closed(f"{_DAEMON_CLOSED} ({error.strerror})")
            raise talk.error() from error

    def _wait(self, timeout_s: float) -> None:
        try:
            self.carrier.wait(timeout_s)
        except FrameError as error:
            self.talk.no_frame(error)

    def _hear(self) -> None:
        """Act on what the daemon said besides answers."""
        talk = self.talk
        try:
            while not talk.over and (frame := self.carrier.next_control()) is not None:
                talk.act(frame)
        except FrameError as error:
            talk.no_frame(error)


_exchanges: Final[weakref.WeakSet[Exchange]] = weakref.WeakSet()


def _forked() -> None:
    for exchange in list(_exchanges):
        exchange.forked()


os.register_at_fork(after_in_child=_forked)
