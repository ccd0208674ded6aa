"""Answers as the client reads them: cut in every way, of several versions, control frames among them."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.wire.client.response_inbox import Response, ResponseInbox
from sigd.wire.errors import FrameError
from sigd.wire.framer import Frame
from sigd.wire.messages import Goodbye, Heartbeat
from sigd.wire.status import RejectCode, Status


def response_frame(
    sequence: int, outputs: int, *, version: int = 1, longer_bytes: int = 0, status: int = 0
) -> bytes:
    scalars = struct.pack("<QQQQIIIHH", sequence, 2, 3, 4, 5, 6, 7, status, 9)
    block = scalars + np.arange(sequence, sequence + outputs, dtype=np.float32).tobytes()
    block += bytes(-len(block) % 8) + b"\xee" * longer_bytes
    return struct.pack("<HHHH", len(block), 11, 91, version) + block


def feed(inbox: ResponseInbox, data: bytes) -> None:
    inbox.writable()[: len(data)] = data
    inbox.arrived(len(data))


def take_all(inbox: ResponseInbox) -> list[object]:
    """Control frames as their block, then answers as tuples."""
    found: list[object] = []
    while (frame := inbox.scan()) is not None:
        found.append(frame.block)
    while inbox.rows:
        *scalars, outputs = inbox.take_one()
        found.append((*scalars, *outputs.tolist()))
    return found


def is_answer(item: object) -> bool:
    return isinstance(item, tuple)


@given(
    st.integers(1, 5),
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 2**20), st.integers(1, 3), st.integers(0, 2)),
            st.builds(Heartbeat, st.integers(0, 2**64 - 1)),
        ),
        max_size=8,
    ),
)
def test_round_trip_in_every_cut(
    three_ways: Callable[..., list[object]],
    outputs: int,
    sent: list[tuple[int, int, int] | Heartbeat],
) -> None:
    """Answers of versions 1 to 3, longer blocks in the newer ones, heartbeats in between."""
    stream = b""
    answers: list[object] = []
    controls: list[object] = []
    for item in sent:
        if isinstance(item, Heartbeat):
            stream += item.encode()
            controls.append(item.encode()[8:])
        else:
            sequence, version, words = item
            stream += response_frame(
                sequence, outputs, version=version, longer_bytes=8 * words * (version > 1)
            )
            values = [float(sequence + n) for n in range(outputs)]
            answers.append((sequence, 2, 3, 4, 5, 6, 7, 0, 9, *values))
    # control frames come ahead of answers that were not taken yet; each kind keeps its own order
    found = three_ways(
        lambda: ResponseInbox(outputs), take_all, stream, lambda items: sorted(items, key=is_answer)
    )
    assert found == controls + answers


def test_take_one_gives_every_field() -> None:
    inbox = ResponseInbox(3)
    feed(inbox, response_frame(11, 3))
    assert inbox.scan() is None
    response = inbox.take_one()
    assert response[:-1] == (11, 2, 3, 4, 5, 6, 7, 0, 9)
    assert response._fields == (
        "sequence",
        "client_time_ns",
        "receive_time_ns",
        "send_time_ns",
        "instrument_id",
        "model_generation",
        "infer_ns",
        "status",
        "batch_rows",
        "outputs",
    )
    assert response.outputs.dtype == np.float32
    assert response.outputs.tolist() == [11, 12, 13]
    assert response.ok


def test_outputs_are_the_callers_own() -> None:
    inbox = ResponseInbox(1)
    feed(inbox, response_frame(1, 1))
    inbox.scan()
    first = inbox.take_one()
    feed(inbox, response_frame(2, 1))
    inbox.scan()
    many = inbox.take(1)
    feed(inbox, response_frame(3, 1))
    first.outputs[0] += 1
    assert first.outputs.tolist() == [2]
    assert many["outputs"].tolist() == [[2]]


def test_a_status_is_named_where_it_has_a_name() -> None:
    inbox = ResponseInbox(1)
    feed(inbox, response_frame(1, 1, status=2) + response_frame(2, 1, status=77))
    inbox.scan()
    busy, unknown = inbox.take_one(), inbox.take_one()
    assert busy.status is Status.BUSY
    assert unknown.status == 77
    assert not busy.ok
    assert not unknown.ok


def test_take_gives_whole_frames_as_an_array() -> None:
    inbox = ResponseInbox(2)
    feed(inbox, b"".join(response_frame(sequence, 2) for sequence in range(10)))
    inbox.scan()
    first = inbox.take(4)
    rest = inbox.take(6)
    assert first["sequence"].tolist() == [0, 1, 2, 3]
    assert rest["sequence"].tolist() == [4, 5, 6, 7, 8, 9]
    assert rest["outputs"].tolist() == [[n, n + 1] for n in range(4, 10)]
    assert first.tobytes() == b"".join(response_frame(sequence, 2) for sequence in range(4))
    assert inbox.take(0).shape == (0,)


def test_longer_answers_are_cut_to_the_known_part() -> None:
    inbox = ResponseInbox(3)
    frames = [
        response_frame(sequence, 3, version=1 + sequence % 3, longer_bytes=16 * (sequence % 3))
        for sequence in range(9)
    ]
    feed(inbox, b"".join(frames))
    assert inbox.scan() is None
    assert inbox.rows == 9
    taken = inbox.take(9)
    assert taken["sequence"].tolist() == list(range(9))
    assert taken["outputs"].tolist() == [[n, n + 1, n + 2] for n in range(9)]


def test_a_control_frame_comes_ahead_of_answers_not_taken() -> None:
    inbox = ResponseInbox(1)
    feed(inbox, response_frame(1, 1) + Goodbye(1).encode() + response_frame(2, 1) + Heartbeat(7).encode())
    goodbye, heartbeat = inbox.scan(), inbox.scan()
    assert isinstance(goodbye, Frame)
    assert isinstance(heartbeat, Frame)
    assert (goodbye.header.template_id, heartbeat.header.template_id) == (5, 4)
    assert Heartbeat.decode(heartbeat.block) == Heartbeat(7)
    assert inbox.scan() is None
    assert [inbox.take_one().sequence for _ in range(2)] == [1, 2]


@pytest.mark.parametrize(
    ("header", "code", "reason"),
    [
        ((64, 11, 90, 1), RejectCode.UNSUPPORTED_VERSION, "schema 90"),
        ((64, 11, 91, 0), RejectCode.UNSUPPORTED_VERSION, "schema version 0"),
        ((64, 99, 91, 1), RejectCode.UNEXPECTED_TEMPLATE, "unknown template 99"),
        ((56, 11, 91, 1), RejectCode.MALFORMED_FRAME, "SignalResponse of 64 bytes, expected 72"),
        ((72, 11, 91, 1), RejectCode.MALFORMED_FRAME, "SignalResponse of 80 bytes, expected 72"),
        ((56, 11, 91, 2), RejectCode.MALFORMED_FRAME, "SignalResponse v2 of 64 bytes, expected >= 72"),
    ],
)
def test_a_wrong_header_harms_no_answer_before_it(
    header: tuple[int, int, int, int], code: RejectCode, reason: str
) -> None:
    inbox = ResponseInbox(3)
    feed(inbox, response_frame(1, 3) + struct.pack("<HHHH", *header))
    with pytest.raises(FrameError, match=reason) as caught:
        inbox.scan()
    assert caught.value.code == code
    assert inbox.rows == 1
    assert inbox.take_one().sequence == 1


@given(
    outputs=st.sampled_from([1, 5_000, 16_370]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 300_000)), max_size=60),
)
def test_answers_not_taken_are_kept(outputs: int, steps: list[tuple[bool, int]]) -> None:
    """Any mixture of arriving and taking: nothing is lost, and there is always room for more."""
    inbox = ResponseInbox(outputs)
    wire = bytearray()
    expected: deque[int] = deque()
    sequence = 0
    for arrives, size in [*steps, (False, 10**9)]:
        if arrives:
            while len(wire) < size:
                wire += response_frame(sequence % 1000, outputs)
                expected.append(sequence % 1000)
                sequence += 1
                if sequence % 7 == 0:
                    wire += Heartbeat(sequence).encode()
            room = inbox.writable()
            assert len(room)
            part = wire[: min(size, len(room))]
            del wire[: len(part)]
            feed(inbox, bytes(part))
            while (frame := inbox.scan()) is not None:
                assert frame.header.template_id == 4
        else:
            taken = inbox.take(min(size, inbox.rows))
            for answer in taken:
                oldest = expected.popleft()
                assert answer["sequence"] == oldest
                assert answer["outputs"][-1] == oldest + outputs - 1
    inbox.feed(bytes(wire))
    while inbox.scan() is not None:
        pass
    assert inbox.take(inbox.rows)["sequence"].tolist() == list(expected)


def test_the_fields_are_the_tables() -> None:
    assert Response._fields == ResponseInbox(1).dtype.names[4:]  # type: ignore[index]


@pytest.mark.parametrize("outputs", [0, 16_371])
def test_outputs_that_no_frame_carries(outputs: int) -> None:
    with pytest.raises(ValueError, match="1 to 16370"):
        ResponseInbox(outputs)
