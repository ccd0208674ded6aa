"""The format of recordings: what is written comes back, whatever was cut off or turned over is found."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.wire.errors import RecordingDamaged
from sigd.wire.recording.format import (
    BLOCK_HEADER_BYTES,
    BLOCK_MAGIC,
    RECORD,
    RECORD_HEADER_BYTES,
    RING_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Block,
    Kind,
    RingHeader,
    SegmentHeader,
    block_header,
    cut_records,
    read_blocks,
    read_records,
    segment_bytes,
    stretch_bytes_in,
    stretches,
)

START = 8000
"""Position of the stream at which the segments of these tests begin."""

HEADER = SegmentHeader(
    recording_id=bytes(range(16)),
    number=4,
    stretch_bytes=2000,
    wall_ns=1_700_000_000_000_000_000,
    monotonic_ns=123_456,
    about=b'{"sigd":"0.1.0"}',
)

payloads = st.lists(st.binary(min_size=1, max_size=12).map(lambda data: data * 8), min_size=1, max_size=5)


def segment(records: Sequence[bytes]) -> bytes:
    """A segment's bytes with one block for each piece."""
    content = bytearray(HEADER.encode())
    position = START
    for piece in records:
        content += block_header(piece, position, 5) + piece
        position += len(piece)
    return bytes(content)


def read(content: bytes) -> list[Block | RecordingDamaged]:
    return list(
        read_blocks(lambda offset, count: content[offset : offset + count], len(content), HEADER.position)
    )


def whole(found: Sequence[Block | RecordingDamaged]) -> list[bytes]:
    return [item.records for item in found if isinstance(item, Block)]


def damage(found: Sequence[Block | RecordingDamaged]) -> list[RecordingDamaged]:
    return [item for item in found if isinstance(item, RecordingDamaged)]


def test_a_segments_header_comes_back() -> None:
    assert SegmentHeader.decode(HEADER.encode()) == HEADER
    assert len(HEADER.encode()) == SEGMENT_HEADER_BYTES
    assert HEADER.position == START


def test_a_turned_bit_anywhere_in_a_segments_header_is_found() -> None:
    header = HEADER.encode()
    for offset in range(0, len(header), 7):
        turned = bytearray(header)
        turned[offset] ^= 0x10
        with pytest.raises(RecordingDamaged):
            SegmentHeader.decode(bytes(turned))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "starts with b''"),
        (b"SIGDREC1" + bytes(100), "cut off"),
        (bytes(SEGMENT_HEADER_BYTES), "a recording with b'SIGDREC1'"),
        (
            b"SIGDREC1" + struct.pack("<I", 2) + bytes(SEGMENT_HEADER_BYTES),
            "version 2, this sigd reads version 1",
        ),
    ],
)
def test_what_is_no_segment_is_told_apart(content: bytes, words: str) -> None:
    with pytest.raises(RecordingDamaged, match=words):
        SegmentHeader.decode(content)


@given(payloads)
def test_blocks_come_back(records: list[bytes]) -> None:
    found = read(segment(records))
    assert whole(found) == records
    assert damage(found) == []
    assert found[0].position == START  # type: ignore[union-attr]


@given(payloads, st.integers(0, 300))
def test_the_end_is_where_nothing_is_written_yet(records: list[bytes], allocated: int) -> None:
    found = read(segment(records) + bytes(allocated))
    assert whole(found) == records
    assert damage(found) == []


@given(payloads)
def test_cut_at_any_byte_all_before_the_cut_comes_back_and_the_cut_is_found(records: list[bytes]) -> None:
    content = segment(records)
    ends = [SEGMENT_HEADER_BYTES]
    for piece in records:
        ends.append(ends[-1] + BLOCK_HEADER_BYTES + len(piece))
    for cut in range(SEGMENT_HEADER_BYTES, len(content)):
        found = read(content[:cut])
        complete = sum(end <= cut for end in ends) - 1
        assert whole(found) == records[:complete]
        # A cut between two blocks leaves a segment that is whole in itself: the stream's positions tell, not
        # this one.
        assert [error.offset for error in damage(found)] == ([] if cut in ends else [ends[complete]])


@given(payloads, st.data())
def test_a_turned_byte_is_found_and_costs_its_own_block(records: list[bytes], data: st.DataObject) -> None:
    content = bytearray(segment(records))
    offset = data.draw(st.integers(SEGMENT_HEADER_BYTES, len(content) - 1))
    content[offset] ^= data.draw(st.integers(1, 255))
    found = read(bytes(content))
    (error,) = damage(found)
    start, hit = SEGMENT_HEADER_BYTES, 0
    while offset >= start + BLOCK_HEADER_BYTES + len(records[hit]):
        start += BLOCK_HEADER_BYTES + len(records[hit])
        hit += 1
    assert error.offset == start
    assert f"from byte {start:,} on" in str(error)
    assert whole(found) == records[:hit] + records[hit + 1 :]


def test_a_page_that_never_reached_the_disk_is_found() -> None:
    records = [b"a" * 8, b"b" * 8, b"c" * 8]
    content = bytearray(segment(records))
    start = SEGMENT_HEADER_BYTES + BLOCK_HEADER_BYTES + 8
    content[start : start + BLOCK_HEADER_BYTES + 8] = bytes(BLOCK_HEADER_BYTES + 8)
    found = read(bytes(content))
    assert whole(found) == [b"a" * 8, b"c" * 8]
    (error,) = damage(found)
    assert error.reason == "nothing is written here, although something follows; the next 40 bytes are lost"


def test_a_block_whose_header_is_not_written_yet_is_no_damage() -> None:
    content = segment([b"a" * 8]) + bytes(BLOCK_HEADER_BYTES) + b"unfinish"
    assert whole(read(content)) == [b"a" * 8]
    assert damage(read(content)) == []


def test_a_block_that_stands_in_the_wrong_place_is_found() -> None:
    header = HEADER.encode()
    early, late = (
        header + block_header(b"x" * 8, position, 0) + b"x" * 8 for position in (START - 8, START + 8)
    )
    assert whole(read(early)) == []
    assert "position 7992 follows on position 8000" in str(damage(read(early))[0])
    assert whole(read(late)) == [b"x" * 8]
    assert "position 8008 follows on position 8000" in str(damage(read(late))[0])


def test_what_looks_like_a_block_in_a_broken_one_is_not_taken_for_one() -> None:
    decoy = BLOCK_MAGIC + bytes(36)
    content = bytearray(segment([decoy, b"z" * 8]))
    content[SEGMENT_HEADER_BYTES + 5] ^= 1
    assert whole(read(bytes(content))) == [b"z" * 8]


def exchange(session: int, request: int, body: bytes) -> bytes:
    return RECORD.pack(RECORD_HEADER_BYTES + len(body), Kind.EXCHANGES, 2, session, 1, 0, 77, request) + body


def filler(count_bytes: int) -> bytes:
    return struct.pack("<Q", count_bytes) + b"\xee" * (count_bytes - 8)


def test_records_come_back_and_fillers_do_not() -> None:
    end = RECORD.pack(RECORD_HEADER_BYTES, Kind.END, 0, 0, 0, 0, 0, 9)
    stream = exchange(1, 0, b"a" * 16) + filler(8) + exchange(2, 2, b"b" * 24) + filler(40) + end
    first, second, last = read_records(stream, 1000)
    assert (first.position, first.session, first.rows, first.version, first.batch) == (1000, 1, 2, 1, 77)
    assert (bytes(first.body), bytes(second.body)) == (b"a" * 16, b"b" * 24)
    assert (second.position, second.request) == (1000 + 48 + 8, 2)
    assert (last.kind, last.request) == (Kind.END, 9)


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack("<IHH", 0, Kind.FILLER, 0),
        struct.pack("<IHH", 16, Kind.FILLER, 0),
        struct.pack("<IHH", 32, 9, 0) + bytes(24),
        struct.pack("<IHH", 24, Kind.EXCHANGES, 1) + bytes(24),
        struct.pack("<IHH", 64, Kind.EXCHANGES, 1) + bytes(24),
    ],
)
def test_what_is_no_record_is_found(stream: bytes) -> None:
    good = exchange(1, 0, b"a" * 16)
    with pytest.raises(RecordingDamaged) as caught:
        list(read_records(good + stream, 500))
    assert caught.value.offset == 500 + len(good)


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_damage(stream: bytes) -> None:
    try:
        records = list(read_records(stream, 0))
    except RecordingDamaged:
        return
    assert sum(RECORD_HEADER_BYTES + len(record.body) for record in records) <= len(stream)


@given(st.lists(st.integers(1, 30).map(lambda words: 8 * words), max_size=30), st.integers(8, 400))
def test_pieces_are_whole_records_and_no_longer_than_asked(sizes: list[int], most_bytes: int) -> None:
    records = b"".join(filler(size) for size in sizes)
    pieces = [bytes(piece) for piece in cut_records(memoryview(records), most_bytes)]
    assert b"".join(pieces) == records
    left = iter(sizes)
    for piece in pieces:
        inside = 0
        count = 0
        while inside < len(piece):
            inside += next(left)
            count += 1
        assert inside == len(piece), "cut between two records"
        assert len(piece) <= most_bytes or count == 1
    # Nothing that is no record keeps it for ever.
    assert [bytes(piece) for piece in cut_records(memoryview(bytes(64)), 8)] == [bytes(64)]


def test_a_rings_header_comes_back() -> None:
    header = RingHeader(1 << 20, 1 << 22, bytes(range(16)), b"{}")
    assert RingHeader.decode(header.encode()) == header
    assert header.offset(0) == header.offset(1 << 20) == RING_HEADER_BYTES
    for wrong in (b"", b"SIGDRING", bytes(RING_HEADER_BYTES)):
        with pytest.raises(RecordingDamaged, match="a ring with b'SIGDRING'"):
            RingHeader.decode(wrong)
    newer = bytearray(header.encode())
    newer[8] = 2
    with pytest.raises(RecordingDamaged, match="version 2"):
        RingHeader.decode(bytes(newer))


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 500), st.integers(1, 500))
def test_stretches_cover_it_and_are_cut_at_every_multiple(
    start: int, count: int, one: int, other: int
) -> None:
    pieces = list(stretches(start, start + count, one, other))
    assert [position for a, b in pieces for position in range(a, b)] == list(range(start, start + count))
    for a, b in pieces:
        assert a // one == (b - 1) // one
        assert a // other == (b - 1) // other


@given(st.integers(1 << 14, 1 << 40))
def test_a_segment_takes_no_more_than_asked_and_little_less(size: int) -> None:
    stretch = stretch_bytes_in(size)
    assert stretch % 4096 == 0
    assert segment_bytes(stretch) <= size < segment_bytes(stretch + 2 * 4096)
