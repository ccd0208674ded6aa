"""The format of recordings: segments of blocks of records, and the ring that they are written through. No
I/O.

    stream    what one daemon records, from position 0 on; `sigd.daemon.recording` writes it
    ring      the newest part of the stream, in memory that outlives the daemon
    segment   a file with a stretch of the stream of fixed length
    block     a piece of that stretch as it was taken from the ring, with a checksum

docs/recordings.md describes all of it for readers in other languages. Little-endian throughout; everything
stands at multiples of 8 bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from sigd.wire.errors import RecordingDamaged

VERSION: Final = 1
SEGMENT_SUFFIX: Final = ".sigdrec"
RING_SUFFIX: Final = ".ring"
ALIGNMENT_BYTES: Final = 8

Bytes = bytes | memoryview
Read = Callable[[int, int], bytes]
"""(offset, count) -> that many bytes of a file, fewer at its end."""


# -- segments --------------------------------------------------------------------------------------------

SEGMENT_MAGIC: Final = b"SIGDREC1"
SEGMENT_HEADER_BYTES: Final = 4096
_SEGMENT: Final = struct.Struct("<8sIIIIQQQQ16s")
"""magic, version, header bytes, crc32 of the header with this field 0, bytes of `about`; number, stretch,
wall clock, monotonic clock, id. `about` follows."""
_SEGMENT_CRC: Final = struct.Struct("<I")
_SEGMENT_CRC_OFFSET: Final = 16
ABOUT_BYTES_MAX: Final = 3072


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What stands at the start of a segment.

    Attributes:
        recording_id: 16 bytes, the same in all segments of one recording.
        number: from 0 on.
        stretch_bytes: of the stream in each segment; this one's starts at position `number * stretch_bytes`.
        wall_ns, monotonic_ns: one moment on CLOCK_REALTIME and on CLOCK_MONOTONIC, whose times are in the
            frames.
        about: JSON, what wrote the recording.
    """

    recording_id: bytes
    number: int
    stretch_bytes: int
    wall_ns: int
    monotonic_ns: int
    about: bytes

    @property
    def position(self) -> int:
        """Where its stretch of the stream starts."""
        return self.number * self.stretch_bytes

    def encode(self) -> bytes:
        """SEGMENT_HEADER_BYTES of them."""
        header = bytearray(SEGMENT_HEADER_BYTES)
        _SEGMENT.pack_into(
            header,
            0,
            SEGMENT_MAGIC,
            VERSION,
            SEGMENT_HEADER_BYTES,
            0,
            len(self.about),
            self.number,
            self.stretch_bytes,
            self.wall_ns,
            self.monotonic_ns,
            self.recording_id,
        )
        header[_SEGMENT.size : _SEGMENT.size + len(self.about)] = self.about
        _SEGMENT_CRC.pack_into(header, _SEGMENT_CRC_OFFSET, zlib.crc32(header))
        return bytes(header)

    @classmethod
    def decode(cls, header: bytes) -> SegmentHeader:
        """Raises RecordingDamaged where it is none, or not whole."""
        if not header.startswith(SEGMENT_MAGIC):
            raise RecordingDamaged(0, f"it starts with {header[:8]!r}, a recording with {SEGMENT_MAGIC!r}")
        if len(header) < SEGMENT_HEADER_BYTES:
            raise RecordingDamaged(
                0, f"its header has {len(header)} bytes, expected {SEGMENT_HEADER_BYTES}: it was cut off"
            )
        _, version, header_bytes, crc32, about_bytes, number, stretch, wall_ns, monotonic_ns, name = (
            _SEGMENT.unpack_from(header)
        )
        if version != VERSION:
            raise RecordingDamaged(0, f"its format has version {version}, this sigd reads version {VERSION}")
        blank = bytearray(header)
        _SEGMENT_CRC.pack_into(blank, _SEGMENT_CRC_OFFSET, 0)
        if header_bytes != SEGMENT_HEADER_BYTES or zlib.crc32(blank) != crc32:
            raise RecordingDamaged(0, "its header does not have the checksum that it names")
        about = header[_SEGMENT.size : _SEGMENT.size + about_bytes]
        return cls(name, number, stretch, wall_ns, monotonic_ns, about)


_HEADERS_SHARE: Final = 64
_PAGE_BYTES: Final = 4096


def segment_bytes(stretch_bytes: int) -> int:
    """What is allocated for a segment: its header, its stretch, and the headers of its blocks, if they are
    not very many; then it becomes larger."""
    return SEGMENT_HEADER_BYTES + stretch_bytes + stretch_bytes // _HEADERS_SHARE


def stretch_bytes_in(size: int) -> int:
    """The longest stretch, in whole pages, whose segment takes no more than `size`."""
    fits = (size - SEGMENT_HEADER_BYTES) * _HEADERS_SHARE // (_HEADERS_SHARE + 1)
    return fits // _PAGE_BYTES * _PAGE_BYTES


# -- blocks ----------------------------------------------------------------------------------------------

BLOCK_MAGIC: Final = b"SGDB"
BLOCK_HEADER_BYTES: Final = 32
_BLOCK: Final = struct.Struct("<4sIIIQQ")
"""magic, crc32 of everything after it, bytes of records, 0; position, wall clock."""
BLOCK_RECORDS_BYTES: Final = 1 << 16
"""A block has no more records than that, or one: what is altered costs its own block."""
_BLOCK_SUMMED: Final = 8
"""The checksum covers a block from here to its end."""
_SEARCH_BYTES: Final = 1 << 20


class Block(NamedTuple):
    """A whole block of a segment.

    Attributes:
        offset: of its header in the file.
        position: of its first record in the stream.
        wall_ns: when it was written.
    """

    offset: int
    position: int
    wall_ns: int
    records: bytes

    @property
    def end(self) -> int:
        """Position of what follows in the stream."""
        return self.position + len(self.records)

    @property
    def next_offset(self) -> int:
        """Where the next block starts in the file."""
        return self.offset + BLOCK_HEADER_BYTES + len(self.records)


def block_header(records: Bytes, position: int, wall_ns: int) -> bytes:
    """What stands before `records` in the file."""
    summed = _BLOCK.pack(BLOCK_MAGIC, 0, len(records), 0, position, wall_ns)[_BLOCK_SUMMED:]
    crc32 = zlib.crc32(records, zlib.crc32(summed))
    return _BLOCK.pack(BLOCK_MAGIC, crc32, len(records), 0, position, wall_ns)


def read_blocks(read: Read, size: int, position: int) -> Iterator[Block | RecordingDamaged]:
    """The blocks of a segment of `size` bytes that starts at `position` of the stream, and what is wrong
    between them.

    What follows damage is found by the next block that is whole. The end is where no block is written yet: a
    file is allocated as zeros, and a block's header is written last.
    """
    offset = SEGMENT_HEADER_BYTES
    while offset < size:
        found = _read_block(read, offset, size, position)
        if isinstance(found, Block):
            if found.position != position:
                yield RecordingDamaged(offset, f"position {found.position} follows on position {position}")
            yield found
            offset, position = found.next_offset, found.end
            continue
        following = _find_block(read, offset + ALIGNMENT_BYTES, size, position)
        if following is not None:
            # What is lost between them has been said.
            position = following.position
            reason = found or "nothing is written here, although something follows"
            yield RecordingDamaged(offset, f"{reason}; the next {following.offset - offset} bytes are lost")
            offset = following.offset
        else:
            if found:
                yield RecordingDamaged(offset, f"{found}; nothing whole follows")
            return


def _read_block(read: Read, offset: int, size: int, position: int) -> Block | str:
    """The block at `offset`; else what is wrong with it, nothing where none is written."""
    header = read(offset, BLOCK_HEADER_BYTES)
    if not any(header):
        return ""
    if len(header) < BLOCK_HEADER_BYTES:
        return f"a block's header of {BLOCK_HEADER_BYTES} bytes was cut off after {len(header)}"
    magic, crc32, count_bytes, zero, at, wall_ns = _BLOCK.unpack(header)
    if magic != BLOCK_MAGIC or zero or count_bytes % ALIGNMENT_BYTES or not count_bytes:
        return "what stands here is no block's header"
    if offset + BLOCK_HEADER_BYTES + count_bytes > size:
        return f"a block of {count_bytes} bytes starts here, and the file ends before it does"
    records = read(offset + BLOCK_HEADER_BYTES, count_bytes)
    if zlib.crc32(records, zlib.crc32(header[_BLOCK_SUMMED:])) != crc32:
        return f"a block of {count_bytes} bytes does not have the checksum that it names"
    if at < position:
        return f"a block of position {at} follows on position {position}"
    return Block(offset, at, wall_ns, records)


def _find_block(read: Read, offset: int, size: int, position: int) -> Block | None:
    """The first whole block from `offset` on."""
    while offset < size:
        chunk = read(offset, _SEARCH_BYTES + len(BLOCK_MAGIC) - 1)
        start = chunk.find(BLOCK_MAGIC)
        while start >= 0:
            found = _read_block(read, offset + start, size, position)
            if isinstance(found, Block):
                return found
            start = chunk.find(BLOCK_MAGIC, start + 1)
        offset += _SEARCH_BYTES
    return None


# -- records ---------------------------------------------------------------------------------------------

RECORD_HEADER_BYTES: Final = 32
RECORD: Final = struct.Struct("<IHHIHHQQ")
"""bytes of the record, kind, rows; session, version of the requests, 0; batch, number of the first
request."""
ROWS_MAX: Final = 0xFFFF
_LENGTH: Final = struct.Struct("<I")


class Kind(IntEnum):
    """What a record is."""

    FILLER = 0  # nothing: only its first 8 bytes mean anything
    EXCHANGES = 1  # requests of one client, then their answers
    SESSION = (
        2  # JSON, who the client is and what serves it; stands before its first exchanges in each segment
    )
    END = 3  # the daemon has ended as it should; nothing follows


class Record(NamedTuple):
    """One record as it stands in the stream.

    Attributes:
        position: of the record.
        session: the client's number; one client has several, one for each model that it was served by.
        version: the wire's, of the requests.
        batch: rows with the same batch ran together; 0 for a request that ran alone.
        request: the first row's number: of all requests that were answered, recorded or not, from 0 on.
        body: what follows the header.
    """

    position: int
    kind: Kind
    rows: int
    session: int
    version: int
    batch: int
    request: int
    body: memoryview


def read_records(records: Bytes, position: int) -> Iterator[Record]:
    """The records of a whole piece of the stream that starts at `position`.

    Raises:
        RecordingDamaged: something is no record; its offset is a position of the stream.
    """
    view = memoryview(records)
    at = 0
    while at < len(view):
        word = int.from_bytes(view[at : at + ALIGNMENT_BYTES], "little")
        count_bytes, kind, rows = word & 0xFFFF_FFFF, word >> 32 & 0xFFFF, word >> 48
        end = at + count_bytes
        if kind == Kind.FILLER and not rows and count_bytes and end <= len(view):
            at = end
            continue
        if kind not in tuple(Kind) or count_bytes < RECORD_HEADER_BYTES or end > len(view):
            raise RecordingDamaged(position + at, f"a record of {count_bytes} bytes and kind {kind}")
        _, _, _, session, version, _, batch, request = RECORD.unpack_from(view, at)
        yield Record(
            position + at,
            Kind(kind),
            rows,
            session,
            version,
            batch,
            request,
            view[at + RECORD_HEADER_BYTES : end],
        )
        at = end


def cut_records(records: memoryview, most_bytes: int) -> Iterator[memoryview]:
    """Whole records in pieces of at most that many bytes each, or of one record that is longer."""
    start = at = 0
    while at < len(records):
        (count_bytes,) = _LENGTH.unpack_from(records, at)
        if start < at and at + count_bytes - start > most_bytes:
            yield records[start:at]
            start = at
        # Were it 0, nothing that is a record followed.
        at = at + count_bytes if count_bytes else len(records)
    yield records[start:]


# -- the ring --------------------------------------------------------------------------------------------

RING_MAGIC: Final = b"SIGDRING"
RING_HEADER_BYTES: Final = 4096
RING_HEAD_WORD: Final = 16
"""Position up to which the stream is written; published last by the daemon."""
RING_DROPPED_WORD: Final = 17
"""Requests that found no room; the daemon's."""
RING_TAIL_WORD: Final = 32
"""Position up to which the stream has been stored; the keeper's."""
RING_ERROR_WORD: Final = 33
"""Why nothing is being stored, an errno; 0 where all is well. The keeper's."""
RING_KEEPER_WORD: Final = 34
"""The keeper's process once it stores; the keeper's."""
_RING: Final = struct.Struct("<8sQQQ16sQ")
"""magic, version, capacity, stretch, id, bytes of `about`, which stands at RING_ABOUT_OFFSET."""
RING_ABOUT_OFFSET: Final = 1024
assert RING_ABOUT_OFFSET + ABOUT_BYTES_MAX <= RING_HEADER_BYTES
assert _SEGMENT.size + ABOUT_BYTES_MAX <= SEGMENT_HEADER_BYTES
assert RECORD.size == RECORD_HEADER_BYTES
assert _BLOCK.size == BLOCK_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class RingHeader:
    """The fixed part of a ring's header."""

    capacity_bytes: int
    stretch_bytes: int
    recording_id: bytes
    about: bytes

    def offset(self, position: int) -> int:
        """Where that position of the stream stands in the ring's file."""
        return RING_HEADER_BYTES + position % self.capacity_bytes

    def encode(self) -> bytes:
        """Up to RING_HEADER_BYTES, with all counters 0."""
        header = bytearray(RING_HEADER_BYTES)
        _RING.pack_into(
            header,
            0,
            RING_MAGIC,
            VERSION,
            self.capacity_bytes,
            self.stretch_bytes,
            self.recording_id,
            len(self.about),
        )
        header[RING_ABOUT_OFFSET : RING_ABOUT_OFFSET + len(self.about)] = self.about
        return bytes(header)

    @classmethod
    def decode(cls, header: bytes) -> RingHeader:
        """Raises RecordingDamaged where it is none."""
        if len(header) < RING_HEADER_BYTES or not header.startswith(RING_MAGIC):
            raise RecordingDamaged(0, f"it starts with {header[:8]!r}, a ring with {RING_MAGIC!r}")
        _, version, capacity_bytes, stretch_bytes, recording_id, about_bytes = _RING.unpack_from(header)
        if version != VERSION:
            raise RecordingDamaged(0, f"its format has version {version}, this sigd reads version {VERSION}")
        about = header[RING_ABOUT_OFFSET : RING_ABOUT_OFFSET + about_bytes]
        return cls(capacity_bytes, stretch_bytes, recording_id, about)


def stretches(start: int, end: int, *lengths: int) -> Iterator[tuple[int, int]]:
    """The positions from `start` to `end`, cut at each multiple of each length: where the ring or a segment
    ends.

    >>> list(stretches(50, 130, 100, 64))
    [(50, 64), (64, 100), (100, 128), (128, 130)]
    """
    while start < end:
        cut = min(end, *((start // length + 1) * length for length in lengths))
        yield start, cut
        start = cut
