"""What a client may do to its own region and doorbells, and what the daemon owes it for that."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from sigd.daemon.transport.doorbell import BellRinger
from sigd.wire.client.request_outbox import RequestOutbox
from sigd.wire.framer import Framer
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome
from sigd.wire.region import OFFSETS
from sigd.wire.ring import Region

PATIENCE_S: Final = 20.0
_U64_MAX: Final = 2**64 - 1


class Attacker:
    """A session over shared memory, every part of which is in the open.

    Attributes:
        path: of the daemon's socket.
        reject: the Reject that ended it, once it has come.
    """

    def __init__(self, path: str, ring_slots: int = 16) -> None:
        self.reject: Reject | None = None
        self.path = path
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(PATIENCE_S)
        self.connection.connect(path)
        self.connection.sendall(Hello(transport=1, ring_slots=ring_slots, client_name="attacker").encode())
        first, self.descriptors, _, _ = socket.recv_fds(self.connection, 1 << 16, 3)
        self._framer = Framer()
        self._feed(first)
        frame = self._framer.next_frame()
        assert frame is not None
        assert frame.header.template_id == 2, frame
        self.welcome = Welcome.decode(frame.block)
        self.memory, self.request_bell, self.response_bell = self.descriptors
        self.view = memoryview(mmap.mmap(self.memory, os.fstat(self.memory).st_size))
        region = Region.attach(self.view)
        self.requests, self.responses = region.requests_out(), region.responses_in()
        self._outbox = RequestOutbox(self.welcome.features)
        self._answers = memoryview(bytearray(self.responses.frame_bytes * 256))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        for descriptor in self.descriptors:
            os.close(descriptor)

    def request(self, sequence: int = 1) -> bytes:
        """A request that is right."""
        return bytes(self._outbox.encode_single([0.25] * self.welcome.features, sequence, 0, 0, 0))

    def publish(self, frame: bytes) -> None:
        """Into the next slot, whatever it is; and the bell is rung."""
        self.requests.publish(frame)
        self.ring()

    def fill(self) -> None:
        """As many requests as there is room for."""
        for _ in range(self.requests.room()):
            self.requests.publish(self.request())
        self.ring()

    def ring(self) -> None:
        os.eventfd_write(self.request_bell, 1)

    def write_word(self, field: str, value: int) -> None:
        """One of the first page's words, of either side."""
        self.view[OFFSETS[field] : OFFSETS[field] + 8] = struct.pack("<Q", value)

    def answers(self, count: int) -> None:
        """Wait for that many answers and take them."""
        end_s = time.monotonic() + PATIENCE_S
        while count:
            count -= self.responses.take(self._answers, count)
            assert time.monotonic() < end_s, f"{count} answers did not come"

    def until_closed(self) -> int:
        """Read to the end of the stream; the code of the Reject, 0 where there was none."""
        while True:
            while (frame := self._framer.next_frame()) is not None:
                if frame.header.template_id == 3:
                    self.reject = Reject.decode(frame.block)
            try:
                part = self.connection.recv(1 << 16)
            except ConnectionResetError:
                part = b""
            if not part:
                return self.reject.code if self.reject else 0
            self._feed(part)

    def _feed(self, part: bytes) -> None:
        room = self._framer.writable()
        room[: len(part)] = part
        self._framer.arrived(len(part))


Attack = Callable[[Attacker, random.Random], int | None]
"""What is done; the code that the daemon owes for it, or None where the session may live on or end with
any."""


def _head_backwards(peer: Attacker, _draw: random.Random) -> int:
    peer.publish(peer.request())
    peer.answers(1)
    peer.write_word("request_head", 0)
    peer.ring()
    return 9


def _head_far_ahead(peer: Attacker, draw: random.Random) -> int:
    ahead = peer.welcome.ring_slots + 1
    peer.write_word("request_head", draw.choice((ahead, 2**31, 2**32, 2**63, _U64_MAX)))
    peer.ring()
    return 9


def _tail_impossible(peer: Attacker, draw: random.Random) -> int:
    peer.write_word("response_tail", draw.choice((2, 2**40, _U64_MAX)))
    peer.publish(peer.request() + peer.request())
    return 9


def _garbage_frame(peer: Attacker, draw: random.Random) -> int | None:
    peer.publish(draw.randbytes(len(peer.request())))
    return None


def _another_template(peer: Attacker, draw: random.Random) -> int:
    frame = draw.choice((Heartbeat(1).encode(), Goodbye().encode()))
    peer.publish(frame + bytes(len(peer.request()) - len(frame)))
    return 9


def _torn_frame(peer: Attacker, draw: random.Random) -> int | None:
    frame = bytearray(peer.request())
    at = draw.randrange(8)
    frame[at] ^= 1 << draw.randrange(8)
    peer.publish(bytes(frame))
    return None


def _slot_changed_while_read(peer: Attacker, draw: random.Random) -> int | None:
    stop = threading.Event()
    slot = peer.requests.slot(0)
    other = draw.randbytes(len(slot))

    def scribble() -> None:
        while not stop.is_set():
            slot[:] = other
            slot[8:] = peer.request()[8:]

    thread = threading.Thread(target=scribble)
    thread.start()
    peer.publish(peer.request())
    time.sleep(0.002)
    stop.set()
    thread.join()
    return None


def _bells_made_to_block(peer: Attacker, _draw: random.Random) -> None:
    for bell in (peer.request_bell, peer.response_bell):
        fcntl.fcntl(bell, fcntl.F_SETFL, 0)
    os.eventfd_write(peer.response_bell, _U64_MAX - 1)
    peer.responses.may_sleep()
    peer.publish(peer.request())
    peer.answers(1)
    for _ in range(100):
        os.eventfd_write(peer.request_bell, 1 << 40)
        # Emptied behind the daemon's back, unless it was first: only that must not make this side wait.
        fcntl.fcntl(peer.request_bell, fcntl.F_SETFL, os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(peer.request_bell)
        fcntl.fcntl(peer.request_bell, fcntl.F_SETFL, 0)


def _bell_storm(peer: Attacker, _draw: random.Random) -> None:
    for _ in range(2000):
        peer.ring()


def _bells_past_their_last_number(peer: Attacker, _draw: random.Random) -> None:
    """Only the kernel can add that much: then a waiter for the bell is told of an error, once."""
    peer.publish(peer.request())
    peer.answers(1)
    with BellRinger() as ringer:
        for bell in (peer.request_bell, peer.response_bell):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(bell, _U64_MAX - 1)
            for _ in range(3):
                ringer.ring(bell)
    peer.responses.may_sleep()
    for _ in range(3):
        peer.requests.publish(peer.request())
        peer.answers(1)


def _stopped_in_between(peer: Attacker, draw: random.Random) -> None:
    _let_another_end(peer, draw, signal.SIGSTOP)


def _killed_in_between(peer: Attacker, draw: random.Random) -> None:
    _let_another_end(peer, draw, signal.SIGKILL)


def _let_another_end(peer: Attacker, draw: random.Random, how: signal.Signals) -> None:
    """A process that publishes and takes as fast as it can is stopped or killed, wherever it is."""
    pid = os.fork()
    if pid == 0:
        try:
            other = Attacker(peer.path, draw.choice((2, 16)))
            while True:
                other.fill()
                other.answers(1)
        finally:
            os._exit(1)
    time.sleep(draw.uniform(0.001, 0.02))
    os.kill(pid, how)
    time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _pages_taken_away(peer: Attacker, _draw: random.Random) -> None:
    libc_fallocate = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    _fallocate(peer.memory, libc_fallocate, len(peer.view))
    peer.ring()


def _resized(peer: Attacker, _draw: random.Random) -> None:
    for size in (0, 4096, 1 << 30):
        try:
            os.ftruncate(peer.memory, size)
        except PermissionError:
            continue
        raise AssertionError(f"the region could be resized to {size}")


def _answers_never_taken(peer: Attacker, _draw: random.Random) -> None:
    for _ in range(3):
        peer.fill()


def _daemons_words_overwritten(peer: Attacker, draw: random.Random) -> None:
    for field in ("request_tail", "response_head", "daemon_heartbeat_ns", "daemon_sleeping", "magic"):
        peer.write_word(field, draw.getrandbits(64))
    peer.ring()


def _request_on_the_stream(peer: Attacker, _draw: random.Random) -> int:
    peer.connection.sendall(peer.request())
    return 3


def _garbage_on_the_stream(peer: Attacker, draw: random.Random) -> int | None:
    peer.connection.sendall(b"\xff" * 8 + draw.randbytes(100))
    return 2


def _heartbeats_without_end(peer: Attacker, _draw: random.Random) -> None:
    peer.connection.sendall(Heartbeat(1).encode() * 500)


def _gone_with_requests_under_way(peer: Attacker, _draw: random.Random) -> None:
    peer.fill()
    peer.connection.shutdown(socket.SHUT_RDWR)


def _gone_while_it_publishes(peer: Attacker, _draw: random.Random) -> None:
    peer.connection.shutdown(socket.SHUT_WR)
    peer.publish(peer.request())


ATTACKS: Final[dict[str, Attack]] = {
    attack.__name__.strip("_").replace("_", " "): attack
    for attack in (
        _head_backwards,
        _head_far_ahead,
        _tail_impossible,
        _garbage_frame,
        _another_template,
        _torn_frame,
        _slot_changed_while_read,
        _bells_made_to_block,
        _bell_storm,
        _bells_past_their_last_number,
        _stopped_in_between,
        _killed_in_between,
        _pages_taken_away,
        _resized,
        _answers_never_taken,
        _daemons_words_overwritten,
        _request_on_the_stream,
        _garbage_on_the_stream,
        _heartbeats_without_end,
        _gone_with_requests_under_way,
        _gone_while_it_publishes,
    )
}


def _fallocate(descriptor: int, mode: int, length: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, mode, ctypes.c_long(0), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")
