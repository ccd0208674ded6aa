"""Requests in place: whole and cut, of one version and of several, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.wire.errors import FrameError
from sigd.wire.fields import SIGNAL_REQUEST
from sigd.wire.framer import FRAME_BYTES_MAX
from sigd.wire.inbox import RequestInbox
from sigd.wire.layout import frame_dtype, request_frame_bytes
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Welcome
from sigd.wire.status import GoodbyeCode, RejectCode

MakeFrame = Callable[..., bytes]
NOW_NS = 123_456_789


def row(features: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Any bits at all: NaN with a payload, infinities and denormals among them."""
    bits = np.random.default_rng(seed).integers(0, 2**32, features, dtype=np.uint32)
    return bits.view(np.float32)


def feed(inbox: RequestInbox, data: bytes) -> None:
    inbox.writable()[: len(data)] = data
    inbox.arrived(len(data))


def read_rows(inbox: RequestInbox) -> list[tuple[int, ...]]:
    """The pending rows as the daemon sees them: echoed fields, receive time, bits of the features."""
    words = inbox.row_words(0, inbox.rows)
    bits = inbox.row_features(0, inbox.rows).view(np.uint32)
    return [
        (
            int(receive_ns),
            int(sequence),
            int(client_ns),
            int(deadline_ns),
            int(instrument),
            *features.tolist(),
        )
        for (receive_ns, sequence, client_ns, deadline_ns, instrument, *_), features in zip(
            words, bits, strict=True
        )
    ]


def take_requests(inbox: RequestInbox) -> list[object]:
    """Scan, answer at once, until nothing is left: rows as tuples, other frames as their block."""
    found: list[object] = []
    while True:
        frame = inbox.scan(NOW_NS)
        found += read_rows(inbox)
        answered = inbox.rows
        inbox.answered(answered)
        if frame is not None:
            found.append(frame.block)
        elif not answered:
            return found


def expected_row(
    features: np.ndarray[tuple[int], np.dtype[np.float32]],
    sequence: int,
    client_time_ns: int = 0,
    deadline_ns: int = 0,
    instrument_id: int = 0,
) -> tuple[int, ...]:
    bits = features.view(np.uint32).tolist()
    return (NOW_NS, sequence, client_time_ns, deadline_ns, instrument_id, *bits)


u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)


@given(
    st.integers(1, 9),
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {"sequence": u64, "client_time_ns": u64, "deadline_ns": u64, "instrument_id": u32}
            ),
            st.integers(0, 2**64 - 1).map(Heartbeat),
            st.sampled_from(list(GoodbyeCode)).map(Goodbye),
        ),
        max_size=6,
    ),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=6),
)
def test_round_trip_in_every_cut(
    three_ways: Callable[..., list[object]],
    request_frame: MakeFrame,
    features: int,
    sent: list[dict[str, int] | Heartbeat | Goodbye],
    versions: list[tuple[int, int]],
) -> None:
    """Requests of versions 1 to 3, longer blocks in the newer ones, control frames in between."""
    stream = b""
    expected: list[object] = []
    for index, item in enumerate(sent):
        if isinstance(item, dict):
            version, longer_words = versions[index % len(versions)]
            values = row(features, index)
            stream += request_frame(
                values, version=version, longer_bytes=8 * longer_words * (version > 1), **item
            )
            expected.append(expected_row(values, **item))
        else:
            stream += item.encode()
            expected.append(item.encode()[8:])
    assert three_ways(lambda: RequestInbox(features, 4), take_requests, stream) == expected


def test_rows_are_read_where_they_arrived(request_frame: MakeFrame) -> None:
    inbox = RequestInbox(64, 8)
    frames = [request_frame(row(64, seed), sequence=seed, flags=0) for seed in range(5)]
    feed(inbox, b"".join(frames))
    assert inbox.scan(NOW_NS) is None
    assert (inbox.rows, inbox.head, inbox.frame_bytes) == (5, 0, 296)
    assert np.shares_memory(inbox.row_features(0, 5), np.frombuffer(inbox.bytes, np.uint8))
    assert inbox.row_features(2, 2).view(np.uint32).tolist() == [
        row(64, 2).view(np.uint32).tolist(),
        row(64, 3).view(np.uint32).tolist(),
    ]
    assert inbox.row_words(1, 3)[:, 1].tolist() == [1, 2, 3]
    inbox.answered(2)
    assert inbox.head == 2 * 296
    assert inbox.row_words(0, 3)[:, 1].tolist() == [2, 3, 4]


def test_rows_are_stamped_when_they_are_scanned(request_frame: MakeFrame) -> None:
    inbox = RequestInbox(2, 8)
    frame = request_frame(row(2, 0), sequence=1)
    feed(inbox, frame + frame[:20])
    inbox.scan(10)
    feed(inbox, frame[20:] + frame)
    inbox.scan(20)
    assert inbox.row_words(0, 3)[:, 0].tolist() == [10, 20, 20]


def test_a_receive_time_that_looks_like_a_header_is_no_header(request_frame: MakeFrame) -> None:
    inbox = RequestInbox(2, 8)
    frame = request_frame(row(2, 0), sequence=1)
    header = int.from_bytes(frame[:8], "little")
    feed(inbox, frame)
    inbox.scan(header)
    inbox.scan(header)
    assert inbox.rows == 1
    assert inbox.row_words(0, 1)[0, 0] == header


def test_another_version_waits_for_the_rows_before_it(request_frame: MakeFrame) -> None:
    inbox = RequestInbox(3, 8)
    old = [request_frame(row(3, seed), sequence=seed) for seed in (1, 2)]
    new = [request_frame(row(3, seed), sequence=seed, version=2, longer_bytes=24) for seed in (3, 4)]
    feed(inbox, b"".join(old + new + old[:1]))
    assert inbox.scan(1) is None
    assert inbox.row_words(0, inbox.rows)[:, 1].tolist() == [1, 2]
    inbox.answered(1)
    assert inbox.scan(1) is None
    assert inbox.rows == 1
    inbox.answered(1)
    assert inbox.scan(2) is None
    assert inbox.row_words(0, inbox.rows)[:, 1].tolist() == [3, 4]
    assert inbox.row_features(0, 2).view(np.uint32).tolist() == [
        row(3, 3).view(np.uint32).tolist(),
        row(3, 4).view(np.uint32).tolist(),
    ]
    inbox.answered(2)
    assert inbox.scan(3) is None
    assert inbox.row_words(0, inbox.rows)[:, 1].tolist() == [1]
    inbox.answered(1)
    assert inbox.unscanned_bytes == 0


def test_a_control_frame_waits_for_the_rows_before_it(request_frame: MakeFrame) -> None:
    inbox = RequestInbox(3, 8)
    feed(inbox, request_frame(row(3, 1)) + Heartbeat(5).encode() + Goodbye().encode())
    assert inbox.scan(1) is None
    assert inbox.rows == 1
    inbox.answered(1)
    assert inbox.unscanned_bytes == 32
    heartbeat, goodbye = inbox.scan(1), inbox.scan(1)
    assert heartbeat is not None
    assert goodbye is not None
    assert (heartbeat.header.template_id, goodbye.header.template_id) == (4, 5)
    assert inbox.scan(1) is None


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"schema_id": 90}, RejectCode.UNSUPPORTED_VERSION, "schema 90, expected 91"),
        ({"version": 0}, RejectCode.UNSUPPORTED_VERSION, "schema version 0, expected at least 1"),
        ({"template_id": 12}, RejectCode.UNEXPECTED_TEMPLATE, "unknown template 12"),
        ({"block_length": 289}, RejectCode.MALFORMED_FRAME, "297 bytes, expected a multiple of 8"),
        ({"block_length": 280}, RejectCode.MALFORMED_FRAME, "SignalRequest of 288 bytes, expected 296"),
        ({"block_length": 296}, RejectCode.MALFORMED_FRAME, "SignalRequest of 304 bytes, expected 296"),
        ({"block_length": 0}, RejectCode.MALFORMED_FRAME, "SignalRequest of 8 bytes, expected 296"),
        (
            {"block_length": 280, "version": 2},
            RejectCode.MALFORMED_FRAME,
            "SignalRequest v2 of 288 bytes, expected >= 296",
        ),
    ],
)
def test_a_wrong_header_waits_for_the_rows_before_it(
    request_frame: MakeFrame, change: dict[str, int], code: RejectCode, reason: str
) -> None:
    good = request_frame(row(64, 1), sequence=1)
    bad = np.frombuffer(good, frame_dtype(SIGNAL_REQUEST, features=64)).copy()
    for name, value in change.items():
        bad[name] = value
    inbox = RequestInbox(64, 8)
    feed(inbox, good + bad.tobytes())
    assert inbox.scan(1) is None
    assert inbox.rows == 1
    inbox.answered(1)
    for _ in range(2):
        with pytest.raises(FrameError, match=reason) as caught:
            inbox.scan(1)
        assert caught.value.code == code
    assert inbox.rows == 0


def test_a_wrong_header_is_found_before_its_frame_is_whole() -> None:
    inbox = RequestInbox(64, 8)
    header = struct.pack("<HHHH", 288, 10, 92, 1)
    feed(inbox, header[:7])
    assert inbox.scan(1) is None
    feed(inbox, header[7:])
    with pytest.raises(FrameError, match="schema 92"):
        inbox.scan(1)


def test_frames_that_a_client_may_not_send_are_handed_over_whole() -> None:
    inbox = RequestInbox(64, 8)
    feed(inbox, Hello(features=3).encode() + Welcome(1, 1, 1, 1, 1, 1, bytes(32), "").encode())
    hello, welcome = inbox.scan(1), inbox.scan(1)
    assert hello is not None
    assert welcome is not None
    assert Hello.decode(hello.block) == Hello(features=3)
    assert welcome.header.template_id == 2


def test_a_full_buffer_has_no_room_until_rows_are_answered(request_frame: MakeFrame) -> None:
    inbox = RequestInbox(16_373, 4)
    assert len(inbox.bytes) == 4 * FRAME_BYTES_MAX
    frames = [request_frame(row(16_373, seed), sequence=seed) for seed in range(4)]
    feed(inbox, b"".join(frames))
    inbox.scan(1)
    assert inbox.rows == 4
    assert len(inbox.writable()) == 0
    inbox.answered(1)
    assert len(inbox.writable()) == FRAME_BYTES_MAX, "the answered row's room is free again"
    assert inbox.row_words(0, 3)[:, 1].tolist() == [1, 2, 3], "the others moved, whole"
    feed(inbox, frames[0][:-1])
    assert len(inbox.writable()) == 1
    feed(inbox, frames[0][-1:])
    inbox.scan(2)
    assert inbox.row_words(0, 4)[:, 1].tolist() == [1, 2, 3, 0]
    assert inbox.row_features(3, 1).view(np.uint32).tolist() == [row(16_373, 0).view(np.uint32).tolist()]


@pytest.mark.parametrize(("features", "rows_max"), [(1, 1), (64, 320), (16_373, 1)])
def test_there_is_room_for_the_rows_and_for_two_frames_of_any_kind(features: int, rows_max: int) -> None:
    inbox = RequestInbox(features, rows_max)
    assert len(inbox.bytes) >= rows_max * request_frame_bytes(features)
    assert len(inbox.bytes) >= 2 * FRAME_BYTES_MAX
    assert len(inbox.bytes) % 8 == 0


def test_a_request_of_a_newer_version_as_long_as_a_frame_can_be(request_frame: MakeFrame) -> None:
    inbox = RequestInbox(1, 1)
    longest = request_frame(row(1, 1), version=9, longer_bytes=FRAME_BYTES_MAX - 48, sequence=77)
    feed(inbox, request_frame(row(1, 0), sequence=76) + longest[:100])
    inbox.scan(1)
    inbox.answered(1)
    feed(inbox, longest[100:])
    inbox.scan(NOW_NS)
    assert read_rows(inbox) == [expected_row(row(1, 1), 77)]


def test_unscanned_bytes_are_those_behind_the_rows(request_frame: MakeFrame) -> None:
    inbox = RequestInbox(2, 8)
    feed(inbox, request_frame(row(2, 0)) + b"\x28\0\x0a")
    assert inbox.unscanned_bytes == 51
    inbox.scan(1)
    assert inbox.unscanned_bytes == 3


def test_impossible_calls_are_caught(request_frame: MakeFrame) -> None:
    inbox = RequestInbox(2, 8)
    feed(inbox, request_frame(row(2, 0)))
    inbox.scan(1)
    with pytest.raises(AssertionError):
        inbox.answered(2)
    with pytest.raises(AssertionError):
        inbox.arrived(len(inbox.writable()) + 1)


@pytest.mark.parametrize("features", [0, 16_374])
def test_features_that_no_frame_carries(features: int) -> None:
    with pytest.raises(ValueError, match="1 to 16373"):
        RequestInbox(features, 1)


def test_the_header_word_is_read_as_the_contract_orders_its_bytes(request_frame: MakeFrame) -> None:
    frame = request_frame(row(2, 0))
    assert struct.unpack_from("<HHHH", frame) == (40, 10, 91, 1)
    inbox = RequestInbox(2, 8)
    feed(inbox, frame)
    assert inbox.words[0] == int.from_bytes(frame[:8], "little")
