"""The conversation: who may say what, when, and what the other side is told instead."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
from tests.daemon.serving.frames import HEARTBEAT, header, rejected

from sigd.daemon.serving.session import CONTROL_FRAMES_A_TURN
from sigd.daemon.serving.state import State
from sigd.wire.messages import Goodbye, Heartbeat, Hello, ModelInfo, Reject, Welcome
from sigd.wire.status import GoodbyeCode, RejectCode, Status

if TYPE_CHECKING:
    from tests.daemon.conftest import Rig

FEATURES = 4
OUTPUTS = 2


# -- frames in any pieces
# ------------------------------------------------------------------------------------------


def conversation(rig: Rig) -> bytes:
    return (
        Hello().encode()
        + rig.requests(range(3))
        + HEARTBEAT
        + rig.request(3, 3)
        + rig.request(4, 4, version=2, longer_bytes=16)
        + rig.request(5, 5)
        + HEARTBEAT
        + HEARTBEAT
        + rig.requests(range(6, 30))
        + Goodbye().encode()
    )


@pytest.mark.parametrize("piece_bytes", [1, 3, 8, 56, 79, 81, 1000, 1 << 20])
def test_the_same_bytes_get_the_same_answers_in_any_pieces(rig: Rig, piece_bytes: int) -> None:
    client = rig.client()
    client.write(conversation(rig))
    while client.unread:
        client.deliver(piece_bytes)
        rig.backend.finished = True
        rig.batcher.poll()
    rig.run()
    welcome, *between, goodbye = client.received()
    assert isinstance(welcome, Welcome)
    assert goodbye == Goodbye(GoodbyeCode.DONE)
    kinds = [Heartbeat if isinstance(item, Heartbeat) else item.sequence for item in between]  # type: ignore[union-attr]
    assert kinds == [0, 1, 2, Heartbeat, 3, 4, 5, Heartbeat, Heartbeat, *range(6, 30)]
    assert all(
        answer.outputs == (answer.sequence, 0.0) and answer.status == Status.OK  # type: ignore[union-attr]
        for answer in between
        if not isinstance(answer, Heartbeat)
    )
    assert client.finished
    assert rig.batcher.pending_rows == 0


def test_a_heartbeat_is_answered_between_the_requests_around_it(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.request(1) + HEARTBEAT + rig.request(2))
    assert client.received() == [], "the heartbeat waits for the answer before it"
    rig.run()
    first, heartbeat, second = client.received()
    assert heartbeat == Heartbeat(rig.clock.now_ns)
    assert (first.sequence, second.sequence) == (1, 2)  # type: ignore[union-attr]
    assert rig.client_counters.heartbeats == 1


def test_model_info_is_answered_between_the_requests_around_it(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.request(1) + ModelInfo().encode() + rig.request(2))
    assert client.received() == [], "the question waits for the answer before it"
    rig.run()
    first, info, second = client.received()
    assert info == ModelInfo(rig.batcher.generation, rig.batcher.spec.sha256, rig.batcher.name)
    assert (first.sequence, second.sequence) == (1, 2)  # type: ignore[union-attr]


def test_model_info_of_an_unknown_generation_is_zeros(rig: Rig) -> None:
    client = rig.connect()
    client.say(ModelInfo(77).encode())
    rig.run()
    (info,) = client.received()
    assert info == ModelInfo(77)
    assert isinstance(info, ModelInfo)
    assert not info.known


def test_a_flood_of_heartbeats_takes_turns(rig: Rig) -> None:
    flood = 3 * CONTROL_FRAMES_A_TURN + 5
    client = rig.connect()
    client.say(HEARTBEAT * flood + rig.request(1, 1))
    assert len(client.received()) == CONTROL_FRAMES_A_TURN
    assert (client.turns, client.paused) == (1, True)
    client.take_turn()
    assert len(client.received()) == CONTROL_FRAMES_A_TURN
    rig.run()
    *heartbeats, answer = client.received()
    assert len(heartbeats) == flood - 2 * CONTROL_FRAMES_A_TURN
    assert answer.sequence == 1  # type: ignore[union-attr]
    assert not client.paused


def test_heartbeats_to_the_last_byte_of_the_buffer(rig: Rig) -> None:
    client = rig.connect()
    count = len(client.session.writable()) // len(HEARTBEAT)
    client.write(HEARTBEAT * (count + 3))
    rig.run()
    assert len(client.received()) == count + 3


# -- endings


def test_goodbye_is_answered_after_everything_before_it(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.requests(range(20)) + Goodbye().encode() + b"whatever comes after is not looked at")
    rig.run()
    *answers, goodbye = client.received()
    assert [answer.sequence for answer in answers] == list(range(20))  # type: ignore[union-attr]
    assert goodbye == Goodbye(GoodbyeCode.DONE)
    assert client.finished


def test_the_end_of_the_stream_leaves_what_was_sent_to_be_answered(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.requests(range(20)) + HEARTBEAT + rig.request(20) + rig.request(21)[:30])
    client.end()
    assert client.received() == [], "nothing has run yet"
    rig.run()
    assert len(client.received()) == 22
    assert client.finished
    assert rig.batcher.pending_rows == 0


@pytest.mark.parametrize("said", [b"", Hello().encode()[:30], Hello().encode(), Hello().encode() + b"half"])
def test_the_end_of_the_stream_with_nothing_to_answer_closes_at_once(rig: Rig, said: bytes) -> None:
    client = rig.client()
    client.say(said)
    client.end()
    assert client.finished
    assert client.session.closed


def test_the_end_of_the_stream_waits_for_heartbeats_that_wait_for_their_turn(rig: Rig) -> None:
    client = rig.connect()
    client.say(HEARTBEAT * (CONTROL_FRAMES_A_TURN + 1))
    client.session.ended(rig.clock())
    rig.run()
    assert len(client.received()) == CONTROL_FRAMES_A_TURN + 1
    assert client.finished


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (Hello().encode(), RejectCode.UNEXPECTED_TEMPLATE),
        (Welcome(1, 1, 1, 1, 1, 1, bytes(32), "x").encode(), RejectCode.UNEXPECTED_TEMPLATE),
        (Reject(1, "no").encode(), RejectCode.UNEXPECTED_TEMPLATE),
        (header(11, 64) + bytes(56), RejectCode.UNEXPECTED_TEMPLATE),
        (header(12, 64), RejectCode.UNEXPECTED_TEMPLATE),
        (header(10, 48), RejectCode.MALFORMED_FRAME),
        (header(10, 64), RejectCode.MALFORMED_FRAME),
        (header(10, 48, version=2), RejectCode.MALFORMED_FRAME),
        (header(10, 57), RejectCode.MALFORMED_FRAME),
        (header(10, 56, version=0), RejectCode.UNSUPPORTED_VERSION),
        (header(10, 56, schema=1), RejectCode.UNSUPPORTED_VERSION),
        (b"\0" * 8, RejectCode.UNSUPPORTED_VERSION),
    ],
)
def test_a_wrong_frame_is_rejected_once_everything_before_it_is_answered(
    rig: Rig, frame: bytes, code: int
) -> None:
    client, other = rig.connect(), rig.connect()
    client.say(rig.requests(range(3)) + frame)
    other.say(rig.requests(range(5)))
    rig.run()
    *answers, reject = client.received()
    assert [answer.status for answer in answers] == [Status.OK] * 3  # type: ignore[union-attr]
    assert isinstance(reject, Reject)
    assert reject.code == code
    assert client.finished
    assert len(other.answers()) == 5
    assert not other.finished


def test_every_reason_fits_its_field(rig: Rig) -> None:
    """A cut reason would end in the middle of what was expected."""
    longest = 64
    cases = [
        Hello(features=2**32 - 1).encode(),
        Hello(outputs=2**32 - 1).encode(),
        Hello(transport=0xFFFF).encode(),
        Hello(flags=2).encode(),
        header(0xFFFF, 80),
        header(1, 65_536, version=0),
        header(1, 65_536),
        header(10, 65_536) + bytes(65_528),
        HEARTBEAT,
        Hello().encode() + header(10, 48, version=0xFFFF),
        Hello().encode() + header(10, 65_536),
        Hello().encode() + header(1, 80) + bytes(72),
    ]
    for case in cases:
        client = rig.client()
        client.say(case)
        assert len(rejected(client).reason.encode()) < longest, case[:16]


def test_nothing_is_done_after_the_end(rig: Rig) -> None:
    client = rig.client()
    client.session.reject(RejectCode.TOO_MANY_CONNECTIONS, "full")
    sent = bytes(client.raw)
    session = client.session
    # What may still come while the transport closes.
    session.writable()[:80] = Hello().encode()
    session.arrived(80, rig.clock())
    session.ended(rig.clock())
    session.turn(rig.clock())
    session.wind_up(rig.clock())
    session.drain(GoodbyeCode.DRAINING)
    session.reject(RejectCode.MALFORMED_FRAME, "again")
    session.close()
    assert session.state is State.CLOSED
    assert client.raw == sent
    assert sum(rig.client_counters.rejects) == 1
    client.lose()


def test_nothing_is_done_after_the_end_of_a_session_that_served(rig: Rig) -> None:
    client = rig.connect()
    client.session.close()
    sent = bytes(client.raw)
    session = client.session
    session.writable()[:56] = rig.request(1)
    session.arrived(56, rig.clock())
    session.ended(rig.clock())
    session.turn(rig.clock())
    rig.run()
    assert client.raw == sent
    assert rig.batcher.pending_rows == 0
    assert rig.backend.batches == []
    client.lose()


def test_a_lost_session_is_freed_without_the_garbage_collector(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.requests(range(3)) + HEARTBEAT)
    rig.run()
    rig.clients.clear()
    gc.disable()
    try:
        client.lose()
        peer, buffer = weakref.ref(client), weakref.ref(client.session.inbox.words)
        del client
        assert (peer(), buffer()) == (None, None)
    finally:
        gc.enable()


# -- draining


def test_drain_says_goodbye_answers_what_is_pending_and_refuses_the_rest(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.requests([1, 2]))
    client.session.drain(GoodbyeCode.MODEL_WITHDRAWN)
    client.say(rig.requests([3, 4]))
    rig.run()
    client.say(rig.requests([5]))
    rig.run()
    client.say(rig.requests([6]))
    rig.run()
    goodbye, *answers = client.received()
    assert goodbye == Goodbye(GoodbyeCode.MODEL_WITHDRAWN)
    assert [(answer.sequence, answer.status.name) for answer in answers] == [  # type: ignore[union-attr]
        (1, "OK"),
        (2, "OK"),
        (3, "DRAINING"),
        (4, "DRAINING"),
        (5, "DRAINING"),
        (6, "DRAINING"),
    ]
    assert rig.backend.rows_run == 2
    client.session.wind_up(rig.clock())
    assert client.finished


def test_drain_before_hello_closes(rig: Rig) -> None:
    client = rig.client()
    client.session.drain(GoodbyeCode.DRAINING)
    assert client.finished
    assert client.raw == b""


def test_goodbye_of_a_client_that_was_told_to_go(rig: Rig) -> None:
    client = rig.connect()
    client.session.drain(GoodbyeCode.DRAINING)
    client.say(rig.request(1) + Goodbye().encode())
    rig.run()
    assert [type(item).__name__ for item in client.received()] == ["Goodbye", "Answer"], "said once"
    assert client.finished


def test_wind_up_answers_what_was_read_and_reads_no_more(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.requests(range(12)) + HEARTBEAT + rig.request(12))
    client.session.drain(GoodbyeCode.DRAINING)
    client.session.wind_up(rig.clock())
    assert client.paused
    client.write(rig.request(99))
    rig.run()
    goodbye, *rest = client.received()
    assert isinstance(goodbye, Goodbye)
    assert len(rest) == 14
    assert client.finished
    assert client.paused, "nothing was read after all"
    assert rig.batcher.pending_rows == 0


def test_drain_twice_says_goodbye_once(rig: Rig) -> None:
    client = rig.connect()
    client.session.drain(GoodbyeCode.DRAINING)
    client.session.drain(GoodbyeCode.DRAINING)
    assert len(client.received()) == 1
