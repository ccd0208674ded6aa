"""What only shared memory can do to a client, good and bad; the daemon's side is the rings of the same
package."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.wire.client.lines import (
    FEATURES,
    LAYOUT,
    OUTPUTS,
    ROW,
    SLOTS,
    WELCOME,
    RingLine,
    answer,
    newer,
    shared_welcome,
)

from sigd.wire.client import Client, connect
from sigd.wire.client import client as client_module
from sigd.wire.errors import NoSharedMemory, ProtocolBroken, ReceiveTimeout, Rejected, SessionClosed
from sigd.wire.layout import header_word
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject
from sigd.wire.region import region_layout
from sigd.wire.status import GoodbyeCode, RejectCode, Transport

if TYPE_CHECKING:
    from tests.wire.client.conftest import Dial

PAGE_BYTES = 4096


@pytest.fixture
def transport() -> str:
    """These are all about this one."""
    return "shared memory"


def open_descriptors() -> list[str]:
    gc.collect()  # what tests before this one left shall not go away in the middle of it
    return os.listdir("/proc/self/fd")


def mapped_regions() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:region")


# The rings


def test_requests_and_answers_travel_in_the_rings_only(dial: Dial) -> None:
    def scene(line: RingLine) -> None:
        assert line.greet() == Hello(transport=Transport.SHARED_MEMORY)
        (request,) = line.read(1)
        assert request["features"].tolist() == ROW.tolist()
        assert request["sequence"] == 7
        line.connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            line.connection.recv(1)
        line.send(answer(7))
        line.connection.setblocking(True)
        assert line.connection.recv(100) == Goodbye().encode()
        assert (line.word("request_head"), line.word("response_tail")) == (1, 1)

    with dial(scene) as client:
        assert client.welcome == shared_welcome()
        client.send(ROW, sequence=7)
        assert client.receive().outputs.tolist() == [1, 2]


def test_no_more_are_unanswered_than_there_are_slots(dial: Dial) -> None:
    """One more waits for the oldest answer, takes that in, and is on its way: `send` needs no `receive`
    between."""
    may_go_on = threading.Event()

    def scene(line: RingLine) -> None:
        line.greet()
        line.read(SLOTS)
        # Taken, not answered: their slots are not free.
        line.until_the_client_waits()
        line.send(answer(0))
        assert line.read(1)["sequence"].tolist() == [SLOTS]
        line.until_head(SLOTS + 1)
        assert may_go_on.wait(10)
        line.send(*map(answer, range(1, SLOTS + 1)))

    with dial(scene) as client:
        client.send_many(np.ones((SLOTS, FEATURES)))
        client.send(ROW)
        assert client.unanswered == SLOTS + 1
        may_go_on.set()
        assert client.receive_many(SLOTS + 1)["sequence"].tolist() == list(range(SLOTS + 1))


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("spin", [False, True])
def test_few_slots_are_enough(dial: Dial, slots: int, spin: bool) -> None:
    def scene(line: RingLine) -> None:
        layout = region_layout(slots, FEATURES, OUTPUTS)
        line.make_region(layout)
        assert line.hello().ring_slots == slots
        line.send_with(shared_welcome(layout).encode(), line.descriptors)
        for first in range(0, 40, slots):
            for sequence in line.read(slots)["sequence"].tolist():
                assert first <= sequence < first + slots
                line.send(answer(sequence))

    with dial(scene, ring_slots=slots, spin=spin) as client:
        client.send_many(np.ones((40, FEATURES)))
        assert client.receive_many(40)["sequence"].tolist() == list(range(40))


def test_a_request_tail_that_lags_is_waited_for(dial: Dial) -> None:
    """A daemon may answer first and free the requests' slots later: no slot of its is written over."""

    def scene(line: RingLine) -> None:
        line.greet()
        line.until_head(SLOTS)
        line.send(*map(answer, range(SLOTS)))
        time.sleep(0.05)
        assert line.word("request_head") == SLOTS
        assert line.read(SLOTS)["sequence"].tolist() == list(range(SLOTS))
        os.eventfd_write(line.response_bell, 1)
        assert line.read(1)["sequence"].tolist() == [SLOTS]

    with dial(scene) as client:
        client.send_many(np.ones((SLOTS + 1, FEATURES)))
        client.receive_many(SLOTS)


def test_a_newer_daemons_longer_answers(dial: Dial) -> None:
    """Its slots are as long as its answers; what this side does not know is cut off."""
    layout = region_layout(4, FEATURES, OUTPUTS)
    longer = type(layout)(4, FEATURES, OUTPUTS, layout.request_stride, layout.response_stride + 64)

    def scene(line: RingLine) -> None:
        line.make_region(longer)
        line.hello()
        line.send_with(shared_welcome(longer).encode(), line.descriptors)
        for sequence in range(20):
            line.read(1)
            frame = newer(answer(sequence), longer_bytes=16 * (sequence % 4 + 1))
            offset = longer.response_offset + (sequence % 4) * longer.response_stride
            line.view[offset : offset + len(frame)] = frame
            line.set_word("response_head", sequence + 1)

    with dial(scene) as client:
        for turn in range(20):
            response = client.request(ROW)
            assert (response.sequence, response.outputs.tolist()) == (turn, [1, 2])


# Sleeping and waking


def test_a_client_that_sleeps_is_woken_by_its_doorbell(dial: Dial) -> None:
    def scene(line: RingLine) -> None:
        line.greet()
        for sequence in range(3):
            line.read(1)
            line.until_the_client_sleeps()
            line.send(answer(sequence))
        line.connection.recv(16)
        assert not line.client_sleeps()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(line.response_bell)  # it took its rings

    with dial(scene) as client:
        for turn in range(3):
            assert client.request(ROW).sequence == turn


def test_a_client_that_spins_never_asks_for_the_doorbell(dial: Dial) -> None:
    def scene(line: RingLine) -> None:
        line.greet()
        for sequence in range(3):
            line.read(1)
            for _ in range(20):
                time.sleep(0.001)
                assert not line.client_sleeps()
            assert not line.responses.publish(answer(sequence))

    with dial(scene, spin=True) as client:
        for turn in range(3):
            assert client.request(ROW).sequence == turn


def test_a_daemon_is_rung_for_where_it_sleeps_and_only_there(dial: Dial) -> None:
    may_send = threading.Event()

    def scene(line: RingLine) -> None:
        line.greet()
        line.until_head(1)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(line.request_bell)
        line.read(1)
        assert line.requests.may_sleep()
        may_send.set()
        line.until_head(2)
        line.until_rung()

    with dial(scene) as client:
        client.send(ROW)
        assert may_send.wait(10)
        client.send(ROW)


def test_a_doorbell_that_is_full_stops_no_client(dial: Dial) -> None:
    """A daemon that does not take its rings, and took O_NONBLOCK off before it passed them."""

    def scene(line: RingLine) -> None:
        os.set_blocking(line.request_bell, True)
        os.eventfd_write(line.request_bell, 2**64 - 2)
        line.greet()
        line.requests.may_sleep()
        line.until_head(1)
        line.requests.awake()
        line.read(1)
        line.send(answer(0))

    with dial(scene) as client:
        assert client.request(ROW).sequence == 0


@pytest.mark.parametrize("spin", [False, True])
def test_a_stale_ring_does_no_harm(dial: Dial, spin: bool) -> None:
    def scene(line: RingLine) -> None:
        line.greet()
        os.eventfd_write(line.response_bell, 5)
        line.connection.recv(16)

    with dial(scene, spin=spin) as client:
        before_s = time.monotonic()
        with pytest.raises(ReceiveTimeout):
            client.receive(0.03)
        assert time.monotonic() - before_s >= 0.03


# The control channel


@pytest.mark.parametrize("spin", [False, True])
def test_answers_that_were_published_before_the_end_are_not_lost(dial: Dial, spin: bool) -> None:
    closed = threading.Event()

    def scene(line: RingLine) -> None:
        line.greet()
        line.read(3)
        line.send(answer(0), answer(1), Reject(RejectCode.PROTOCOL_VIOLATION, "head at 9").encode())
        line.connection.close()
        closed.set()

    with dial(scene, spin=spin) as client:
        client.send_many(np.ones((3, FEATURES)))
        assert closed.wait(10)
        assert [client.receive().sequence for _ in range(2)] == [0, 1]
        with pytest.raises(Rejected, match="head at 9"):
            client.receive()


def test_who_only_polls_notices_the_end_too(dial: Dial) -> None:
    closed = threading.Event()

    def scene(line: RingLine) -> None:
        line.greet()
        line.connection.close()
        closed.set()

    with dial(scene) as client:
        assert closed.wait(10)
        while True:
            try:
                client.receive(0)
            except ReceiveTimeout:
                continue
            except SessionClosed:
                break


def test_what_comes_behind_the_welcome_is_heard(dial: Dial) -> None:
    def scene(line: RingLine) -> None:
        line.hello()
        told = shared_welcome().encode() + Heartbeat(1).encode() + Goodbye(GoodbyeCode.DRAINING).encode()
        line.send_with(told, line.descriptors)
        line.connection.recv(16)

    with dial(scene) as client:
        assert client.goodbye_code == GoodbyeCode.DRAINING


def test_a_full_socket_is_waited_for(dial: Dial) -> None:
    """A daemon that leaves Heartbeats unread for a while: what does not fit waits for room, and follows
    whole."""
    beats = 2000
    may_read = threading.Event()

    def scene(line: RingLine) -> None:
        line.greet()
        assert may_read.wait(10)
        for _ in range(beats):
            assert line.read_control(16)[2] == 4
        assert line.read_control(16) == Goodbye().encode()

    with dial(scene) as client:
        threading.Timer(0.1, may_read.set).start()
        for _ in range(beats):
            with pytest.raises(ReceiveTimeout):
                client.heartbeat(timeout_s=0)


@pytest.mark.parametrize("template", [1, 2, 10, 11])
def test_frames_that_do_not_belong_on_the_socket(dial: Dial, template: int) -> None:
    frames = {1: Hello().encode(), 2: WELCOME.encode(), 10: newer(bytes(56)), 11: answer(0)}
    frame = bytearray(frames[template])
    struct.pack_into("<HHHH", frame, 0, len(frame) - 8, template, 91, 1)

    def scene(line: RingLine) -> None:
        line.greet()
        line.connection.sendall(frame)
        line.connection.recv(16)

    with dial(scene) as client, pytest.raises(ProtocolBroken, match=f"sent template {template}, expected"):
        client.receive()


# What no good daemon does


@pytest.mark.parametrize("head", [SLOTS + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("spin", [False, True])
def test_a_head_further_ahead_than_the_ring_is_long(dial: Dial, head: int, spin: bool) -> None:
    def scene(line: RingLine) -> None:
        line.greet()
        line.read(1)
        line.set_word("response_head", head)
        line.connection.recv(16)

    with dial(scene, spin=spin) as client:
        client.send(ROW)
        for ask in (client.receive, client.receive_many, lambda: client.send(ROW)):
            with pytest.raises(
                ProtocolBroken, match=f"rules of shared memory: head at {head}, expected 0..64"
            ):
                ask()


def test_a_head_that_runs_backwards(dial: Dial) -> None:
    def scene(line: RingLine) -> None:
        line.greet()
        line.read(1)
        line.send(answer(0))
        line.read(1)
        line.set_word("response_head", 0)
        line.connection.recv(16)

    with dial(scene) as client:
        client.request(ROW)
        client.send(ROW)
        with pytest.raises(ProtocolBroken, match=r"head at 0, expected 1\.\.65"):
            client.receive()


@pytest.mark.parametrize("tail", [2, 2**64 - 1])
def test_a_tail_that_was_never_published(dial: Dial, tail: int) -> None:
    may_send = threading.Event()

    def scene(line: RingLine) -> None:
        line.greet()
        line.read(1)
        line.send(answer(0))
        line.set_word("request_tail", tail)
        may_send.set()
        line.connection.recv(16)

    with dial(scene) as client:
        client.send(ROW)
        assert may_send.wait(10)
        with pytest.raises(ProtocolBroken, match=f"tail at {tail}, expected within 0..1"):
            client.send(ROW)
        assert client.receive().sequence == 0, "what came can still be taken"
        with pytest.raises(ProtocolBroken, match=f"tail at {tail}"):
            client.receive()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (0, "no valid frame: schema 0"),
        (header_word(11, 72), "SignalResponse of 72 bytes, expected 64"),
        (header_word(10, 64), "rules of shared memory: template 10 in a ring of SignalResponse"),
        (header_word(11, 128, version=2), "frame of 128 bytes in a slot of 64"),
    ],
)
def test_a_torn_slot_and_what_stands_before_it(dial: Dial, word: int, message: str) -> None:
    def scene(line: RingLine) -> None:
        line.greet()
        line.read(3)
        torn = struct.pack("<Q", word) + answer(1)[8:]
        line.send(answer(0) + torn + answer(2))
        line.connection.recv(16)

    with dial(scene) as client:
        client.send_many(np.ones((3, FEATURES)))
        assert client.receive().sequence == 0
        for _ in range(2):
            with pytest.raises(ProtocolBroken, match=message):
                client.receive()


def test_an_old_answer_in_a_slot_that_was_not_written(dial: Dial) -> None:
    def scene(line: RingLine) -> None:
        line.greet()
        for first in range(0, SLOTS, 8):
            line.read(8)
            line.send(*map(answer, range(first, first + 8)))
        line.read(1)
        line.set_word("response_head", SLOTS + 1)
        line.connection.recv(16)

    with dial(scene) as client:
        client.send_many(np.ones((SLOTS, FEATURES)))
        client.receive_many(SLOTS)
        with pytest.raises(ProtocolBroken, match=f"answered sequence 0, expected {SLOTS}"):
            client.request(ROW)


def test_doorbells_that_are_none(dial: Dial) -> None:
    readable, writable = os.pipe()
    os.write(writable, b"x")

    def scene(line: RingLine) -> None:
        assert line.requests.may_sleep()
        line.hello()
        line.send_with(shared_welcome().encode(), [line.memory, readable, readable])
        line.connection.recv(16)

    with dial(scene) as client, pytest.raises(ProtocolBroken, match="doorbell that is no eventfd"):
        client.send(ROW)
    os.close(readable)
    os.close(writable)


# A grant that is none


def _spoil(place: int, value: int) -> Callable[[RingLine], None]:
    def spoil(line: RingLine) -> None:
        struct.pack_into("<I", line.view, place, value)

    return spoil


def _longer_slots(line: RingLine) -> None:
    """A header of more slots than there is memory for."""
    struct.pack_into("<I", line.view, 8, 1024)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil(0, 7), "shared memory that is none: region begins with 0x7, expected 0x31444753"),
        (_spoil(4, 2), "region layout 2, expected 1"),
        (_spoil(8, 3), "a power of two of slots"),
        (_spoil(12, 65), "region stride of 65 bytes, expected 64"),
        (_spoil(16, 1 << 20), "region stride of 1048576 bytes"),
        (_spoil(20, 0), "features"),
        (_longer_slots, r"region of \d+ bytes, expected \d+"),
        (_spoil(8, SLOTS // 2), f"region with ring_slots of {SLOTS // 2}, its Welcome says {SLOTS}"),
        (_spoil(16, 128), "expected 16384|response_stride of 128, its Welcome says 64"),
    ],
)
def test_a_bad_region_header(dial: Dial, spoil: Callable[[RingLine], None], message: str) -> None:
    before = mapped_regions()

    def scene(line: RingLine) -> None:
        spoil(line)
        line.greet()
        assert line.connection.recv(16) == b"", "the client hung up"

    with pytest.raises(ProtocolBroken, match=message):
        dial(scene)
    assert mapped_regions() <= before + 1, "the daemon's own at most"


@pytest.mark.parametrize(
    ("region_bytes", "message"),
    [
        (0, "region of 0 bytes"),
        (100, "region of 100 bytes, expected at least 4096"),
        (PAGE_BYTES, f"region of 4096 bytes, expected {LAYOUT.region_bytes}"),
        (LAYOUT.region_bytes - PAGE_BYTES, f"expected {LAYOUT.region_bytes}"),
    ],
)
def test_a_region_shorter_than_its_header_says(dial: Dial, region_bytes: int, message: str) -> None:
    def scene(line: RingLine) -> None:
        line.hello()
        short = line.sealed_copy(region_bytes)
        line.send_with(shared_welcome().encode(), [short, *line.descriptors[1:]])
        os.close(short)
        assert line.connection.recv(16) == b""

    with pytest.raises(ProtocolBroken, match=message):
        dial(scene)


def test_memory_that_could_shrink_under_the_client(dial: Dial, tmp_path: Path) -> None:
    def scene(line: RingLine) -> None:
        line.hello()
        (tmp_path / "region").write_bytes(bytes(line.view))
        with (tmp_path / "region").open("r+b") as file:
            line.send_with(shared_welcome().encode(), [file.fileno(), *line.descriptors[1:]])
        assert line.connection.recv(16) == b""

    with pytest.raises(ProtocolBroken, match="expected memory that is sealed against shrinking"):
        dial(scene)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_descriptors(dial: Dial, count: int) -> None:
    def scene(line: RingLine) -> None:
        line.hello()
        line.send_with(shared_welcome().encode(), line.descriptors[:count])
        assert line.connection.recv(16) == b""

    before = len(open_descriptors())
    with pytest.raises(ProtocolBroken, match=f"passed {count} descriptors with its Welcome, expected 3"):
        dial(scene)
    assert len(open_descriptors()) <= before + 6, "none but the daemon's"


def test_no_descriptors_tell_a_forwarded_connection(dial: Dial) -> None:
    def scene(line: RingLine) -> None:
        line.hello()
        line.connection.sendall(shared_welcome().encode())
        assert line.connection.recv(16) == b""

    with pytest.raises(
        NoSharedMemory, match=r"the connection is forwarded .* connect with the stream transport"
    ):
        dial(scene)


def test_a_process_that_may_open_no_more(dial: Dial) -> None:
    """The kernel drops what it cannot hand over, and says so."""

    def scene(line: RingLine) -> None:
        line.hello()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
        try:
            line.send_with(shared_welcome().encode(), line.descriptors)
            assert line.connection.recv(16) == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with pytest.raises(NoSharedMemory, match="1 of the 3 descriptors of shared memory: too many are open"):
        dial(scene)


def test_more_descriptors_than_this_side_knows_are_closed(dial: Dial) -> None:
    readable, writable = os.pipe()

    def scene(line: RingLine) -> None:
        line.hello()
        line.send_with(shared_welcome().encode(), [*line.descriptors, writable, writable])
        os.close(writable)
        assert os.read(readable, 1) == b"", "the last writer is gone"

    with dial(scene) as client:
        assert client.welcome.ring_slots == SLOTS
        with pytest.raises(SessionClosed):
            client.receive()
    os.close(readable)


def test_descriptors_that_a_stream_did_not_ask_for_are_closed(dial: Dial) -> None:
    readable, writable = os.pipe()

    def scene(line: RingLine) -> None:
        line.hello()
        line.send_with(WELCOME.encode(), [writable])
        os.close(writable)
        assert os.read(readable, 1) == b""

    with dial(scene, shared_memory=False) as client, pytest.raises(SessionClosed):
        client.receive()
    os.close(readable)


def test_a_stream_where_memory_was_asked_for(dial: Dial) -> None:
    def scene(line: RingLine) -> None:
        line.hello()
        line.connection.sendall(WELCOME.encode())

    with pytest.raises(ProtocolBroken, match="asked for transport 1, the daemon granted 0"):
        dial(scene)


def test_refused_by_a_daemon_that_has_none(dial: Dial) -> None:
    def scene(line: RingLine) -> None:
        line.hello()
        line.send(Reject(RejectCode.TRANSPORT_UNAVAILABLE, "shared memory is not offered here").encode())

    with pytest.raises(Rejected, match="shared memory is not offered here") as caught:
        dial(scene)
    assert caught.value.code == RejectCode.TRANSPORT_UNAVAILABLE


def test_a_processor_that_orders_memory_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "why_not_here", lambda: "this machine is a Z80")
    with pytest.raises(NoSharedMemory, match="this machine is a Z80; connect with the stream transport"):
        connect(tmp_path / "none", shared_memory=True)


# Nothing is left behind


class Daemons:
    """Grants rings to one client after the other and closes its own side as soon as it has."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.path = path

    def serve(self, count: int, scene: Callable[[RingLine], None]) -> None:
        with self.listener:
            for _ in range(count):
                with (
                    contextlib.closing(RingLine(self.listener.accept()[0])) as line,
                    contextlib.suppress(BrokenPipeError),
                ):
                    scene(line)


def _leave(client: Client) -> None:
    client.close()


def _goodbye(client: Client) -> None:
    client.goodbye()


def _broken(client: Client) -> None:
    with pytest.raises(SessionClosed):
        client.receive()
    client.close()


def _give_up(client: Client) -> None:
    with pytest.raises(SessionClosed):
        client.send_many(np.ones((SLOTS + 1, FEATURES)))


def _answer(line: RingLine) -> None:
    line.greet()
    line.read(1)
    line.send(answer(0), Goodbye().encode())


def _hang_up(line: RingLine) -> None:
    line.greet()
    line.close()


@pytest.mark.parametrize("end", [_leave, _goodbye, _broken, _give_up])
def test_many_sessions_leave_no_descriptor_and_no_mapping(
    tmp_path: Path, end: Callable[[Client], None]
) -> None:
    sessions = 200
    daemons = Daemons(tmp_path / "s")
    scene = _hang_up if end is _give_up else _answer
    served = threading.Thread(target=daemons.serve, args=(sessions, scene))
    before = len(open_descriptors())
    served.start()
    for _ in range(sessions):
        client = connect(daemons.path, shared_memory=True)
        if scene is _answer:
            assert client.request(ROW).sequence == 0
        end(client)
        assert client.fileno() == -1
    served.join()
    assert len(open_descriptors()) == before - 1, "and the listener is closed"
    assert mapped_regions() == 0


def test_an_error_that_is_kept_does_not_keep_the_memory(dial: Dial) -> None:
    """Its traceback holds on to the frames that it came through, and they to the rings."""
    with dial(_hang_up) as client, pytest.raises(SessionClosed) as caught:
        client.send_many(np.ones((SLOTS + 1, FEATURES)))
    assert caught.tb is not None
    end_s = time.monotonic() + 10
    while mapped_regions():
        assert time.monotonic() < end_s, "the memory is mapped still"
