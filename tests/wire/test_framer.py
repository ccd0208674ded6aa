"""Headers checked, streams cut into frames."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.wire.errors import FrameError
from sigd.wire.framer import FRAME_BYTES_MAX, Frame, Framer, Header, check_header
from sigd.wire.messages import Heartbeat, Hello
from sigd.wire.status import RejectCode


def word(block_length: int, template_id: int, schema_id: int = 91, version: int = 1) -> int:
    return int.from_bytes(struct.pack("<HHHH", block_length, template_id, schema_id, version), "little")


def take_frames(framer: Framer) -> list[Frame]:
    frames = []
    while (frame := framer.next_frame()) is not None:
        frames.append(frame)
    return frames


def feed(framer: Framer, data: bytes) -> None:
    framer.writable()[: len(data)] = data
    framer.arrived(len(data))


@pytest.mark.parametrize(
    ("template_id", "block_length"), [(1, 72), (2, 120), (3, 72), (4, 8), (5, 8), (10, 288), (11, 64)]
)
def test_good_headers(template_id: int, block_length: int) -> None:
    assert check_header(word(block_length, template_id)) == Header(block_length + 8, template_id, 1)


@pytest.mark.parametrize(
    ("header", "code", "reason"),
    [
        (word(72, 1, schema_id=92), 2, "schema 92, expected 91"),
        (word(72, 1, schema_id=0), 2, "schema 0, expected 91"),
        (word(72, 1, version=0), 2, "schema version 0, expected at least 1"),
        (word(72, 0), 3, "unknown template 0"),
        (word(72, 7), 3, "unknown template 7"),
        (word(72, 12, version=2), 3, "unknown template 12"),
        (word(64, 1), 1, "Hello of 72 bytes, expected 80"),
        (word(80, 1), 1, "Hello of 88 bytes, expected 80"),
        (word(64, 1, version=2), 1, "Hello v2 of 72 bytes, expected >= 80"),
        (word(73, 1, version=2), 1, "frame of 81 bytes, expected a multiple of 8"),
        (word(0, 4), 1, "Heartbeat of 8 bytes, expected 16"),
        (word(16, 5), 1, "Goodbye of 24 bytes, expected 16"),
        (word(289, 10), 1, "frame of 297 bytes, expected a multiple of 8"),
        (word(0xFFFF, 10), 1, "frame of 65543 bytes, expected a multiple of 8"),
        # a foreign schema says nothing about the rest: it is told first
        (word(3, 77, schema_id=1, version=0), 2, "schema 1, expected 91"),
    ],
)
def test_wrong_headers_carry_their_code(header: int, code: int, reason: str) -> None:
    with pytest.raises(FrameError) as caught:
        check_header(header)
    assert caught.value.code == code
    assert caught.value.reason == reason == str(caught.value)
    assert len(reason.encode()) <= 64, "a Reject carries it whole"


@given(st.integers(0, 2**64 - 1))
def test_any_word_is_a_header_or_a_frame_error(header: int) -> None:
    refused: FrameError | None
    checked: Header | None
    try:
        checked = check_header(header)
    except FrameError as error:
        refused = error
        checked = None
    else:
        refused = None
    if refused is not None:
        assert refused.code in (1, 2, 3)
        assert len(refused.reason.encode()) <= 64
    if checked is not None:
        assert struct.pack("<Q", header)[4:6] == bytes([91, 0])
        assert checked.frame_bytes % 8 == 0
        assert 8 <= checked.frame_bytes <= FRAME_BYTES_MAX
        assert checked.version >= 1


@given(st.lists(st.integers(0, 40), max_size=5))
def test_frames_of_any_size_in_every_cut(
    three_ways: Callable[..., list[Frame]], words_of_blocks: list[int]
) -> None:
    sent = [
        struct.pack("<HHHH", 8 * words, 11, 91, 1) + bytes([words % 251]) * 8 * words
        for words in words_of_blocks
    ]
    frames = three_ways(Framer, take_frames, b"".join(sent))
    assert [frame.block for frame in frames] == [frame[8:] for frame in sent]
    assert [frame.header.frame_bytes for frame in frames] == [len(frame) for frame in sent]


@given(st.lists(st.integers(1_000, 70_000), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_a_long_stream_through_a_small_buffer(chunks: list[int], salt: int) -> None:
    """The largest frames there are, in chunks that wrap the buffer in every way."""
    sizes = [65_528, 8, 65_528, 40_000, 65_520, 16]
    sent = [
        struct.pack("<HHHHI", size, 10, 91, 2, (salt + n) % 2**32) + bytes(size - 4)
        for n, size in enumerate(sizes)
    ]
    stream = b"".join(sent)
    framer = Framer()
    frames: list[Frame] = []
    position = turn = 0
    while position < len(stream):
        room = framer.writable()
        assert len(room)
        size = min(len(room), chunks[turn % len(chunks)], len(stream) - position)
        room[:size] = stream[position : position + size]
        framer.arrived(size)
        frames += take_frames(framer)
        position += size
        turn += 1
    assert [frame.block for frame in frames] == [frame[8:] for frame in sent]


def test_a_wrong_header_is_found_before_its_frame_is_whole() -> None:
    framer = Framer()
    feed(framer, struct.pack("<HHHH", 72, 1, 92, 1)[:7])
    assert framer.next_frame() is None
    feed(framer, b"\0")
    with pytest.raises(FrameError):
        framer.next_frame()


def test_frames_before_a_wrong_header_are_read() -> None:
    framer = Framer()
    feed(framer, Heartbeat(5).encode() + bytes(8))
    first = framer.next_frame()
    assert first is not None
    assert first.header.template_id == 4
    for _ in range(2):
        with pytest.raises(FrameError, match="schema 0") as caught:
            framer.next_frame()
        assert caught.value.code == RejectCode.UNSUPPORTED_VERSION


def test_rest_is_what_was_not_taken() -> None:
    framer = Framer()
    feed(framer, Hello().encode() + b"early bytes")
    assert framer.next_frame() is not None
    assert framer.rest() == b"early bytes"
    assert framer.rest() == b""


def test_a_taken_frame_outlives_the_buffer() -> None:
    framer = Framer()
    feed(framer, Heartbeat(7).encode())
    frame = framer.next_frame()
    assert frame is not None
    feed(framer, Heartbeat(9).encode())
    assert frame.block == (7).to_bytes(8, "little")


def test_a_buffer_too_small_for_a_frame_is_refused() -> None:
    Framer(FRAME_BYTES_MAX)
    with pytest.raises(ValueError, match="expected at least 65536"):
        Framer(FRAME_BYTES_MAX - 1)


def test_the_largest_frame_that_a_header_can_name() -> None:
    assert FRAME_BYTES_MAX == 65_536
    header = check_header(word(65_528, 10))
    assert header.frame_bytes == FRAME_BYTES_MAX
