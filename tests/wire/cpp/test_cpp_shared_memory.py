"""The C++ client over shared memory, against a daemon that each test plays itself with the rings of the
Python side."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.wire import fields
from sigd.wire.layout import frame_dtype, header_word
from sigd.wire.messages import Goodbye, Heartbeat, Reject
from sigd.wire.region import OFFSETS, RegionLayout, region_layout
from sigd.wire.ring import RingConsumer, RingProducer
from sigd.wire.status import RejectCode, Transport

if TYPE_CHECKING:
    from pathlib import Path

    from tests.wire.conftest import CppBuilder
    from tests.wire.cpp.conftest import CppClient, ShownDaemon

SPIN, BACKOFF, BLOCK = 0, 1, 2
REQUEST_BYTES = 64
LAYOUT = region_layout(4, 5, 3)

OPENED_TWICE = """
#include <cstdio>
#include <sigd/sigd.hpp>
int main(int, char** argv) {
    sigd::StreamBuffers buffers;
    sigd::Session session;
    sigd::Error error;
    for (int i = 0; i < 2; ++i) {
        const sigd::Spec spec{.path = argv[1], .transport = sigd::wire::Transport::shared_memory};
        if (open_session(spec, buffers, session, error) != sigd::Errc::none) return 1;
        struct stat status {};
        if (::fstat(session.region.get(), &status) != 0) return 2;
        std::printf("%llu\\n", static_cast<unsigned long long>(status.st_ino));
    }
}
"""


def open_session(
    client: CppClient, daemon: ShownDaemon, ring_slots: int = 4, idle: int = SPIN, look_ms: int = 0
) -> None:
    """Shake hands over shared memory."""
    client.tell(f"connect path={daemon.path} transport=1 slots={ring_slots} idle={idle} look_ms={look_ms}")
    hello = daemon.accept()
    assert (hello.transport, hello.ring_slots) == (Transport.SHARED_MEMORY, ring_slots)
    daemon.grant_memory(ring_slots)
    assert client.hear() == "none"


def taken(ring: RingConsumer, rows_max: int = 100) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """The requests that are in the ring."""
    buffer = bytearray(64 * ring.frame_bytes)
    rows = ring.take(memoryview(buffer), rows_max)
    return np.frombuffer(buffer, frame_dtype(fields.SIGNAL_REQUEST, 5), rows)


def both_ends(daemon: ShownDaemon) -> tuple[RingConsumer, RingProducer]:
    """The daemon's two ends of the rings."""
    return daemon.region.requests_in(), daemon.region.responses_out()


def flag(daemon: ShownDaemon, name: str) -> int:
    """A word of the region's first page, as it lies there.

    The region shows its bytes to no caller: these tests read and damage them, as the other process could.
    """
    value: int = struct.unpack_from("<I", daemon.region._view, OFFSETS[name])[0]
    return value


def wait_for_flag(daemon: ShownDaemon, name: str, value: int) -> None:
    """Until the client has set it."""
    end_s = time.monotonic() + 10
    while flag(daemon, name) != value:
        assert time.monotonic() < end_s, f"{name} is {flag(daemon, name)}, expected {value}"
        time.sleep(0.001)


# Frames


def test_requests_and_answers_travel_in_the_rings_only(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("welcome") == "5 3 4 7 4321 0 4 shown 100 4"
    requests, responses = both_ends(shown_daemon)
    assert cpp_client.do("send instrument=9 deadline=11 time=12") == "ok 0"
    (request,) = taken(requests)
    assert request["features"].tolist() == [0, 0.125, 0.25, 0.375, 0.5]
    assert request[["sequence", "client_time_ns", "deadline_ns", "instrument_id"]].tolist() == (0, 12, 11, 9)
    assert bytes(shown_daemon.region._view[4096 + 60 : 4096 + 64]) == bytes(4), "padding is zero"
    assert cpp_client.do("poll") == "nothing"
    responses.publish(shown_daemon.answers(0, instrument_id=9, client_time_ns=12, batch_rows=3, infer_ns=5))
    assert cpp_client.do("poll") == "answer 0 ok 9 12 0 0 0 5 3 0.25 1.25 2.25"
    assert responses.room() == 4
    assert shown_daemon.unread() == b""


def test_the_rings_wrap(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    requests, responses = both_ends(shown_daemon)
    sent = 0
    for burst in (3, 4, 1, 2, 4, 4, 3):
        for number in range(sent, sent + burst):
            assert cpp_client.do("queue") == f"ok {number}"
        assert requests.waiting() == 0, "queued, not published"
        assert cpp_client.do("flush") == "none"
        rows = taken(requests)
        assert rows["sequence"].tolist() == list(range(sent, sent + burst))
        assert rows["features"][:, 0].tolist() == list(range(sent, sent + burst))
        responses.publish(shown_daemon.answers(*range(sent, sent + burst)))
        for number in range(sent, sent + burst):
            assert cpp_client.do("poll").startswith(f"answer {number} ok ")
        sent += burst


def test_no_more_unanswered_than_slots(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    requests, responses = both_ends(shown_daemon)
    assert [cpp_client.do("send") for _ in range(5)][3:] == ["ok 3", "in_flight_full"]
    assert len(taken(requests)) == 4
    # a request that was taken but not answered still counts: its answer must find a free slot
    assert cpp_client.do("send") == "in_flight_full"
    responses.publish(shown_daemon.answers(0))
    assert cpp_client.do("send") == "in_flight_full", "published, but not taken"
    assert cpp_client.do("poll").startswith("answer 0")
    assert cpp_client.do("send") == "ok 4"


@pytest.mark.parametrize("command", ["poll", "wait ms=0", "may_sleep"])
def test_polling_publishes_what_was_queued(
    cpp_client: CppClient, shown_daemon: ShownDaemon, command: str
) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("queue")
    cpp_client.do(command)
    assert taken(shown_daemon.region.requests_in())["sequence"].tolist() == [0]


def test_one_slot_is_enough(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon, ring_slots=1)
    requests, responses = both_ends(shown_daemon)
    for number in range(3):
        cpp_client.tell("request")
        while requests.waiting() == 0:
            pass
        assert taken(requests)["sequence"].tolist() == [number]
        responses.publish(shown_daemon.answers(number))
        assert cpp_client.hear().startswith(f"answer {number} ok")


def test_a_grant_of_more_than_the_slots_hold(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path} transport=1")
    shown_daemon.accept()
    layout = region_layout(2, shown_daemon.features, shown_daemon.outputs)
    welcome = shown_daemon.shared_welcome(layout, in_flight_max=1000)
    shown_daemon.send_with(welcome.encode(), [shown_daemon.memory(layout), *shown_daemon.bells()])
    assert cpp_client.hear() == "none"
    assert [cpp_client.do("send") for _ in range(3)] == ["ok 0", "ok 1", "in_flight_full"]


@pytest.mark.parametrize("between", ["flush", "poll", "wait ms=1"])
def test_what_is_prepared_stays_in_its_place(
    cpp_client: CppClient, shown_daemon: ShownDaemon, between: str
) -> None:
    open_session(cpp_client, shown_daemon)
    requests, _ = both_ends(shown_daemon)
    cpp_client.do("queue")
    cpp_client.do("prepare")
    cpp_client.do(between)
    assert cpp_client.do("commit") == "ok 1"
    assert cpp_client.do("commit") == "invalid_argument"
    cpp_client.do("flush")
    assert taken(requests)["features"][:, 0].tolist() == [0.0, 1.0]


# Sleeping


def test_an_event_loop_of_ones_own_sleeps_over_the_doorbell(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    open_session(cpp_client, shown_daemon)
    _, responses = both_ends(shown_daemon)
    for number in range(3):
        cpp_client.do("send")
        cpp_client.tell("sleep")
        wait_for_flag(shown_daemon, "client_sleeping", 1)
        assert responses.publish(shown_daemon.answers(number)) is True
        os.eventfd_write(shown_daemon.response_bell, 1)
        assert cpp_client.hear() == "doorbell"
        wait_for_flag(shown_daemon, "client_sleeping", 0)
        assert shown_daemon.rung(shown_daemon.response_bell) == 0, "its bell is silent again"
        assert cpp_client.do("poll").startswith(f"answer {number} ok")
    cpp_client.do("send")
    responses.publish(shown_daemon.answers(3))
    assert cpp_client.do("sleep") == "awake", "something came before it slept"
    assert cpp_client.do("poll").startswith("answer 3 ok")
    cpp_client.tell("sleep")
    wait_for_flag(shown_daemon, "client_sleeping", 1)
    shown_daemon.connection.close()
    assert cpp_client.hear() == "socket"
    assert cpp_client.do("poll").startswith("closed")


def test_who_looks_seldom_notices_the_end_in_time(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    shown_daemon.connection.close()
    looks = 0
    while not cpp_client.do("poll").startswith("closed"):
        looks += 1
        time.sleep(0.001)
    assert looks <= 2 * 16, "a look at the clock every 16, at the socket where half a millisecond is over"


def test_the_daemon_is_rung_for_only_where_it_sleeps(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    open_session(cpp_client, shown_daemon)
    requests, _ = both_ends(shown_daemon)
    cpp_client.do("send")
    assert shown_daemon.rung(shown_daemon.request_bell) == 0
    taken(requests)
    assert requests.may_sleep()
    cpp_client.do("queue")
    assert shown_daemon.rung(shown_daemon.request_bell) == 0
    cpp_client.do("queue")
    cpp_client.do("flush")
    assert shown_daemon.rung(shown_daemon.request_bell) == 1, "once for what was published together"
    requests.awake()
    cpp_client.do("send")
    assert shown_daemon.rung(shown_daemon.request_bell) == 0


@pytest.mark.parametrize("idle", [BACKOFF, BLOCK])
def test_a_client_that_sleeps_is_woken_by_its_doorbell(
    cpp_client: CppClient, shown_daemon: ShownDaemon, idle: int
) -> None:
    open_session(cpp_client, shown_daemon, idle=idle)
    _, responses = both_ends(shown_daemon)
    for number in range(3):
        cpp_client.tell("request")
        wait_for_flag(shown_daemon, "client_sleeping", 1)
        assert responses.publish(shown_daemon.answers(number)) is True
        os.eventfd_write(shown_daemon.response_bell, 1)
        assert cpp_client.hear().startswith(f"answer {number} ok")
        assert flag(shown_daemon, "client_sleeping") == 0
        assert shown_daemon.rung(shown_daemon.response_bell) == 0, "it took its rings"


def test_a_client_that_spins_needs_no_doorbell(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    _, responses = both_ends(shown_daemon)
    cpp_client.tell("request")
    assert responses.publish(shown_daemon.answers(0)) is False
    assert cpp_client.hear().startswith("answer 0 ok")


@pytest.mark.parametrize("idle", [SPIN, BACKOFF, BLOCK])
def test_waiting_comes_to_an_end(cpp_client: CppClient, shown_daemon: ShownDaemon, idle: int) -> None:
    open_session(cpp_client, shown_daemon, idle=idle)
    before_ns = time.monotonic_ns()
    assert cpp_client.do("wait ms=20") == "nothing"
    assert time.monotonic_ns() - before_ns >= 20_000_000
    assert flag(shown_daemon, "client_sleeping") == 0


def test_a_stale_ring_does_no_harm(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon, idle=BLOCK)
    os.eventfd_write(shown_daemon.response_bell, 5)
    before_ns = time.monotonic_ns()
    assert cpp_client.do("wait ms=20") == "nothing"
    assert time.monotonic_ns() - before_ns >= 20_000_000


# The control channel


@pytest.mark.parametrize("idle", [SPIN, BLOCK])
def test_heartbeats_go_over_the_socket(cpp_client: CppClient, shown_daemon: ShownDaemon, idle: int) -> None:
    open_session(cpp_client, shown_daemon, idle=idle)
    assert cpp_client.do("heartbeat") == "none"
    assert shown_daemon.read(16)[2] == 4
    shown_daemon.send(Heartbeat(5_000_000).encode() + Heartbeat(6_000_000).encode())
    cpp_client.do("wait ms=20")
    assert "beats=2 clock=6000000" in cpp_client.do("state")


def test_the_region_tells_that_the_daemon_lives(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    shown_daemon.region.daemon_heartbeat_ns = 9_000_000
    assert "beats=0 clock=9000000" in cpp_client.do("state")


@pytest.mark.parametrize("idle", [SPIN, BLOCK])
def test_answers_published_before_a_reject_are_not_lost(
    cpp_client: CppClient, shown_daemon: ShownDaemon, idle: int
) -> None:
    open_session(cpp_client, shown_daemon, idle=idle)
    _, responses = both_ends(shown_daemon)
    for _ in range(3):
        cpp_client.do("queue")
    responses.publish(shown_daemon.answers(0, 1))
    shown_daemon.send(Reject(RejectCode.PROTOCOL_VIOLATION, "head at 9").encode())
    shown_daemon.connection.close()
    assert cpp_client.do("wait").startswith("answer 0 ok")
    assert cpp_client.do("wait").startswith("answer 1 ok")
    assert "head at 9 (code 9, protocol_violation)" in cpp_client.do("wait")
    assert "lost=1 unanswered=2" in cpp_client.do("state")


@pytest.mark.parametrize("idle", [SPIN, BLOCK])
def test_the_sockets_end_is_the_sessions(cpp_client: CppClient, shown_daemon: ShownDaemon, idle: int) -> None:
    open_session(cpp_client, shown_daemon, idle=idle)
    _, responses = both_ends(shown_daemon)
    cpp_client.do("queue")
    cpp_client.do("queue")
    cpp_client.tell("wait")
    responses.publish(shown_daemon.answers(0))
    shown_daemon.connection.close()
    assert cpp_client.hear().startswith("answer 0 ok")
    gone = cpp_client.do("wait")
    assert gone == "closed | the daemon closed the connection; 1 requests are unanswered"
    assert cpp_client.do("send") == gone
    assert cpp_client.do("state").startswith("closed")


def test_polling_notices_the_end_too(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    shown_daemon.connection.close()
    cpp_client.until("poll", "closed")


def test_goodbye_and_all_is_answered(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    requests, responses = both_ends(shown_daemon)
    cpp_client.do("queue")
    assert cpp_client.do("goodbye") == "none"
    assert shown_daemon.read(16) == Goodbye().encode()
    assert taken(requests)["sequence"].tolist() == [0], (
        "what was queued is published before the Goodbye is said"
    )
    responses.publish(shown_daemon.answers(0))
    shown_daemon.send(Goodbye().encode())
    shown_daemon.connection.close()
    assert cpp_client.do("wait").startswith("answer 0 ok")
    assert cpp_client.do("wait").startswith("finished")


def test_a_client_comes_back_over_either_transport(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("send")
    cpp_client.tell(f"connect path={shown_daemon.path}")
    shown_daemon.accept()
    shown_daemon.send(shown_daemon.welcome().encode())
    assert cpp_client.hear() == "none"
    assert cpp_client.do("send") == "ok 1"
    assert shown_daemon.requests(1)["sequence"].tolist() == [1]
    open_session(cpp_client, shown_daemon, ring_slots=8)
    assert cpp_client.do("send") == "ok 2"
    assert taken(shown_daemon.region.requests_in())["sequence"].tolist() == [2]


def test_client_that_polls_seldom_notices_the_end_as_soon(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("poll") == "nothing"
    shown_daemon.connection.close()
    time.sleep(0.03)  # more than a tick of any kernel
    assert cpp_client.do("poll").startswith("closed")


def test_client_looks_at_the_control_socket_as_often_as_it_was_told(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    open_session(cpp_client, shown_daemon, look_ms=600_000)
    assert cpp_client.do("poll") == "nothing"
    shown_daemon.connection.close()
    for _ in range(30):
        time.sleep(0.001)
        assert cpp_client.do("poll") == "nothing", "the next look is minutes away"


# What no good daemon does


def _granted(daemon: ShownDaemon, layout: RegionLayout, scene: str) -> tuple[bytes, list[int]]:
    """A Welcome and its descriptors, spoilt in one way."""
    region = daemon.memory(layout, sealed=scene != "unsealed")
    descriptors = [region, *daemon.bells()]
    welcome = daemon.shared_welcome(layout)
    if scene == "one":
        descriptors = descriptors[:1]
    elif scene == "two":
        descriptors = descriptors[:2]
    elif scene == "no memfd":
        descriptors[0] = descriptors[1]
    elif scene == "magic":
        struct.pack_into("<I", daemon.region._view, 0, 7)
    elif scene == "layout":
        struct.pack_into("<I", daemon.region._view, 4, 2)
    elif scene == "slots":
        struct.pack_into("<I", daemon.region._view, 8, 3)
    elif scene == "shape":
        struct.pack_into("<I", daemon.region._view, 20, 0)
    elif scene == "stride":
        struct.pack_into("<I", daemon.region._view, 12, 65)
    elif scene == "long":
        struct.pack_into("<I", daemon.region._view, 8, 1 << 20)
    elif scene == "other":
        welcome = daemon.shared_welcome(layout, ring_slots=8)
    return welcome.encode(), descriptors


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        ("one", "sent no region and two doorbells"),
        ("two", "sent no region and two doorbells"),
        ("no memfd", "not sealed against shrinking"),
        ("unsealed", "not sealed against shrinking"),
        ("magic", "does not begin with SGD1"),
        ("layout", "another layout version"),
        ("slots", "ring_slots is no power of two"),
        ("shape", "a shape that no frame carries"),
        ("stride", "strides do not hold its frames"),
        ("long", "shorter than its slots"),
        ("other", "not the one that the Welcome describes"),
    ],
)
def test_a_grant_that_is_none(
    cpp_client: CppClient, shown_daemon: ShownDaemon, scene: str, message: str
) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path} transport=1")
    shown_daemon.accept()
    shown_daemon.send_with(*_granted(shown_daemon, LAYOUT, scene))
    found = cpp_client.hear()
    assert found.startswith("protocol_broken | ")
    assert message in found
    assert shown_daemon.connection.recv(100) == b"", "the client hung up"
    assert cpp_client.do("descriptor") == "-1 -1", "and kept nothing"


def test_no_descriptors_tell_a_forwarded_connection(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path} transport=1")
    shown_daemon.accept()
    shown_daemon.send(shown_daemon.shared_welcome(LAYOUT).encode())
    found = cpp_client.hear()
    assert found.startswith(
        "no_shared_memory | no descriptors came with the Welcome: the connection is forwarded"
    )
    assert found.endswith("connect with the stream transport")
    assert shown_daemon.connection.recv(100) == b"", "the client hung up"


def test_a_process_that_may_open_no_more(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path} transport=1")
    shown_daemon.accept()
    with cpp_client.no_more_descriptors():
        shown_daemon.grant_memory()
        found = cpp_client.hear()
    assert found.startswith("system | ")
    assert found.endswith("no descriptors are left for shared memory; raise the limit (ulimit -n)")


def test_a_session_that_is_opened_anew_has_the_new_descriptors(
    cpp: CppBuilder, shown_daemon: ShownDaemon, tmp_path: Path
) -> None:
    source = tmp_path / "anew.cpp"
    source.write_text(OPENED_TWICE)
    with subprocess.Popen([cpp.build(source), shown_daemon.path], stdout=subprocess.PIPE) as process:
        granted = []
        for _ in range(2):
            shown_daemon.accept()
            region = shown_daemon.memory(LAYOUT)
            granted.append(os.fstat(region).st_ino)
            descriptors = [region, *shown_daemon.bells()]
            shown_daemon.send_with(shown_daemon.shared_welcome(LAYOUT).encode(), descriptors)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, list(map(int, out.split()))) == (0, granted)


def test_a_stream_where_memory_was_asked_for(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path} transport=1")
    shown_daemon.accept()
    shown_daemon.send(shown_daemon.welcome().encode())
    assert "asked for transport 1, the daemon granted 0" in cpp_client.hear()


def test_descriptors_not_asked_for_are_closed(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path}")
    shown_daemon.accept()
    inside, outside = os.pipe()
    shown_daemon.send_with(shown_daemon.welcome().encode(), [outside])
    assert cpp_client.hear() == "none"
    os.close(outside)
    assert os.read(inside, 1) == b"", "the last writer is gone"
    os.close(inside)


@pytest.mark.parametrize("head", [5, 2**64 - 1, 2**63])
def test_a_head_that_no_producer_can_have(
    cpp_client: CppClient, shown_daemon: ShownDaemon, head: int
) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("send")
    struct.pack_into("<Q", shown_daemon.region._view, OFFSETS["response_head"], head)
    found = cpp_client.do("wait")
    assert found.startswith("protocol_broken | the daemon's ring counters")
    assert cpp_client.do("send") == found


def test_a_frame_longer_than_its_slot(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    _, responses = both_ends(shown_daemon)
    cpp_client.do("send")
    frame = bytearray(shown_daemon.answers(0))
    struct.pack_into("<Q", frame, 0, header_word(11, 136, version=2))
    responses.publish(bytes(frame))
    assert cpp_client.do("wait").startswith("protocol_broken")


def test_a_longer_answer_of_a_newer_daemon(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    _, responses = both_ends(shown_daemon)
    cpp_client.do("send")
    frame = bytearray(shown_daemon.answers(0))
    struct.pack_into("<Q", frame, 0, header_word(11, 128, version=2))
    responses.publish(bytes(frame))
    assert cpp_client.do("wait") == "answer 0 ok 0 0 0 0 0 0 0 0.25 1.25 2.25"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (0, "another schema"),
        (header_word(11, 64), "signal_response of 64 bytes, expected 72"),
        (header_word(10, 64), "sent template 10"),
    ],
)
def test_a_slot_that_holds_no_answer(
    cpp_client: CppClient, shown_daemon: ShownDaemon, word: int, message: str
) -> None:
    open_session(cpp_client, shown_daemon)
    _, responses = both_ends(shown_daemon)
    cpp_client.do("send")
    responses.publish(struct.pack("<Q", word) + shown_daemon.answers(0)[8:])
    assert message in cpp_client.do("wait")


def test_an_answer_out_of_order(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    _, responses = both_ends(shown_daemon)
    cpp_client.do("queue")
    cpp_client.do("send")
    responses.publish(shown_daemon.answers(1))
    assert "answered sequence 1, expected 0" in cpp_client.do("wait")
