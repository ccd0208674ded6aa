"""Rings in shared memory as a client's carrier: requests and answers travel there, everything else over the
socket.

While answers come no system call is made, but for the daemon's doorbell where it sleeps. The socket is looked
at when the ring has been empty for a while, or when poll() says that there is something. What it says then
comes after the
answers that were published before it was said: the ring is emptied first, so that no answer is lost to a
Reject or to the end of the session.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
from itertools import repeat
from typing import Final

from sigd.wire.client.carrier import POLL_S_MAX
from sigd.wire.client.connect import Granted
from sigd.wire.client.response_inbox import ResponseInbox
from sigd.wire.errors import FrameError, NoSharedMemory, ProtocolBroken
from sigd.wire.framer import Frame, Framer
from sigd.wire.messages import Welcome
from sigd.wire.region import read_header, violation
from sigd.wire.ring import Region

_LOOKS_PER_SOCKET_LOOK: Final = 16
"""Empty looks at the ring without a wait between them, as of a caller that polls, until the socket's turn
comes."""
_LOOKS_PER_SPIN: Final = 1024
"""Looks in a row where `wait` spins; the socket's turn comes after them, every 30 us or so."""


class RingCarrier:
    """Implements Carrier on a region and two doorbells, which it owns from now on, as it does the socket."""

    def __init__(
        self,
        connection: socket.socket,
        granted: Granted,
        inbox: ResponseInbox,
        *,
        spin: bool,
    ) -> None:
        """
        Args:
            spin: `wait` looks at the ring again and again instead of sleeping.

        Raises:
            ProtocolBroken: the region is not what the Welcome says.
            NoSharedMemory: it cannot be mapped.
        """
        self._descriptors = granted.descriptors
        memory, self._request_bell, self._response_bell = granted.descriptors
        self._memory, self._region = _map(memory, granted.welcome)
        self._requests = self._region.requests_out()
        self._responses = self._region.responses_in()
        self._socket = connection
        self._inbox = inbox
        self._spin = spin
        self._unsent = False
        self._looks_left = _LOOKS_PER_SOCKET_LOOK
        self._framer = Framer()
        self._framer.writable()[: len(granted.rest)] = granted.rest
        self._framer.arrived(len(granted.rest))
        connection.setblocking(False)
        os.set_blocking(self._request_bell, False)
        os.set_blocking(self._response_bell, False)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._readable.register(self._response_bell, select.POLLIN)

    def fileno(self) -> int:
        return self._socket.fileno()

    def offer_requests(self, frames: memoryview | bytes) -> int:
        requests = self._requests
        # A request that was taken but whose answer was not still holds a slot: its answer needs one.
        room = min(requests.ring_slots - requests.published + self._responses.taken, requests.room())
        taken_bytes = room * requests.frame_bytes
        if taken_bytes < len(frames):
            if room == 0:
                return 0
            frames = frames[:taken_bytes]
        if requests.publish(frames):
            self._ring()
        return len(frames)

    def _ring(self) -> None:
        try:
            os.eventfd_write(self._request_bell, 1)
        except BlockingIOError:
            pass  # so full only where it was rung before
        except OSError as error:
            raise _no_doorbell(error) from error

    def offer_control(self, frame: memoryview | bytes) -> int:
        try:
            sent_bytes = self._socket.send(frame)
        except BlockingIOError:
            sent_bytes = 0
        except OSError:
            self._looks_left = 1  # the daemon may have said why
            raise
        unsent = sent_bytes < len(frame)
        if unsent != self._unsent:
            self._unsent = unsent
            self._readable.modify(self._socket, select.POLLIN | select.POLLOUT if unsent else select.POLLIN)
        return sent_bytes

    def pull(self) -> bool:
        if self._take():
            return True
        self._looks_left -= 1
        if self._looks_left > 0:
            return False
        self._looks_left = _LOOKS_PER_SOCKET_LOOK
        return self._listen()

    def _take(self) -> int:
        """Move answers from the ring into the inbox; how many, 0 where the ring is empty."""
        inbox = self._inbox
        room = inbox.writable()
        responses = self._responses
        try:
            rows = responses.take(room, responses.ring_slots)
        except FrameError:
            # What stands before the wrong frame is an answer still. Where that is the first, this raises
            # again.
            rows = responses.take(room, 1)
        if rows:
            inbox.arrived(rows * inbox.frame_bytes)
            inbox.scan()
        return rows

    def _listen(self) -> bool:
        """Take in what the socket has to say; False where that is nothing."""
        try:
            count_bytes = self._socket.recv_into(self._framer.writable())
        except BlockingIOError:
            return False
        except OSError:
            self._take_all()
            raise
        self._take_all()
        if count_bytes == 0:
            raise EOFError
        self._framer.arrived(count_bytes)
        self._looks_left = 1
        return True

    def _take_all(self) -> None:
        while self._take():
            pass

    def next_control(self) -> Frame | None:
        return self._framer.next_frame()

    def wait(self, timeout_s: float) -> None:
        if self._spin and not self._unsent:
            responses = self._responses
            words, head_word, taken = responses.words, responses.head_word, responses.taken
            for _ in repeat(None, _LOOKS_PER_SPIN):
                if words[head_word] != taken:
                    return
            self._looks_left = 1
        else:
            self._sleep(timeout_s)

    def _sleep(self, timeout_s: float) -> None:
        try:
            if not self._responses.may_sleep():
                return
            for descriptor, _ in self._readable.poll(min(timeout_s, POLL_S_MAX) * 1e3):
                if descriptor == self._response_bell:
                    self._silence()
                else:
                    self._looks_left = 1
        finally:
            self._responses.awake()

    def _silence(self) -> None:
        try:
            os.eventfd_read(self._response_bell)
        except BlockingIOError:
            pass  # the daemon has a hand on it too
        except OSError as error:
            raise _no_doorbell(error) from error

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        for number in self._descriptors:
            os.close(number)
        for holder in (self._requests, self._responses, self._region):
            holder.release()
        self._memory.close()


def _no_doorbell(error: OSError) -> FrameError:
    return violation(f"doorbell that is no eventfd: {error.strerror}")


def _map(descriptor: int, welcome: Welcome) -> tuple[mmap.mmap, Region]:
    """The region that came with a Welcome, every page of it mapped at once."""
    region_bytes = os.fstat(descriptor).st_size
    if region_bytes == 0 or not _is_sealed(descriptor):
        # Sealed, the file cannot shrink under the mapping: no access to it can end this process.
        raise ProtocolBroken(
            f"region of {region_bytes} bytes, expected memory that is sealed against shrinking"
        )
    try:
        memory = mmap.mmap(descriptor, region_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except OSError as error:
        raise NoSharedMemory(
            f"cannot map the {region_bytes} bytes of shared memory: {error.strerror}; connect with the stream"
            " transport"
        ) from error
    view = memoryview(memory)
    try:
        return memory, _attach(view, welcome)
    except BaseException:
        view.release()
        memory.close()
        raise


def _is_sealed(descriptor: int) -> bool:
    try:
        return bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # it is no memfd
        return False


def _attach(view: memoryview, welcome: Welcome) -> Region:
    try:
        layout = read_header(view)
    except FrameError as error:
        raise ProtocolBroken(f"the daemon granted shared memory that is none: {error.reason}") from error
    for name in ("ring_slots", "request_stride", "response_stride", "features", "outputs"):
        found, granted = getattr(layout, name), getattr(welcome, name)
        if found != granted:
            raise ProtocolBroken(f"region with {name} of {found}, its Welcome says {granted}")
    return Region(view, layout)
