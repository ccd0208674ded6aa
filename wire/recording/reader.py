"""Reading recordings back: requests beside their answers, as NumPy arrays, and what is wrong between them.

    for recording in open_recordings(path):
        for item in recording.read():
            ...  # Exchanges, or Damage

A recording that is still being written can be read: what is not in its segments yet is taken from its ring.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from sigd.wire import fields
from sigd.wire.errors import NoRecording, RecordingDamaged
from sigd.wire.layout import frame_dtype, header_word, request_frame_bytes, response_frame_bytes
from sigd.wire.recording.format import (
    RING_HEAD_WORD,
    RING_HEADER_BYTES,
    RING_SUFFIX,
    RING_TAIL_WORD,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MAGIC,
    SEGMENT_SUFFIX,
    Kind,
    Record,
    RingHeader,
    SegmentHeader,
    read_blocks,
    read_records,
    stretches,
)

_RING_TRIES: Final = 100


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What wrote a recording.

    Attributes:
        sigd: its version.
        processor: architecture and instruction sets, see `sigd.models.processor`.
        runtimes: versions of the packages that may run a model, by name.
    """

    sigd: str
    host: str
    pid: int
    processor: str
    runtimes: dict[str, str]


class SessionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One client, and the model that serves it.

    Attributes:
        client: its name as it gave it.
        transport: stream or shared_memory.
        path: of the model's file.
        sha256: of that file, in hex.
        batch_rows_max: of the backend, which decides how batches are padded.
        sizes: that the daemon was given for axes which the model's file leaves free.
        features: of each request; with history, of one step.
        history_steps, history_instruments_max: as in its Welcome; 0 where it sends whole rows.
        time_axis: of the model's input, where history is kept.
        follows: the number that the client had with the model before, whose history it keeps; 0 is none.
        states: of a model that carries a state, which the daemon keeps: inputs, and the outputs which are
            their next values.
    """

    client: str
    transport: str
    model: str
    path: str
    sha256: str
    generation: int
    features: int
    outputs: int
    backend: str
    batch_rows_max: int
    sizes: dict[str, int] = {}
    history_steps: int = 0
    history_instruments_max: int = 0
    time_axis: int = 1
    follows: int = 0
    states: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Exchanges:
    """Requests of one client that were answered together.

    Attributes:
        session: the client's number in its recording.
        batch: those with the same one ran together; 0 for a request that ran alone.
        first: number of the first request, counted over all that were answered.
        requests: structured, the fields of SignalRequest (see sigd.wire.layout.frame_dtype).
        responses: as long, the fields of SignalResponse.
    """

    session: int
    facts: SessionFacts
    batch: int
    first: int
    requests: npt.NDArray[np.void]
    responses: npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that cannot be read."""

    path: Path
    error: RecordingDamaged

    def __str__(self) -> str:
        return f"{self.path}: {self.error}"


@dataclass(frozen=True, slots=True)
class Unread:
    """Requests that are there and cannot be read, for what says whose they are is lost.

    Attributes:
        first: number of the first, counted over all that were answered.
        requests: how many.
    """

    first: int
    requests: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of a recording; `header` is None where it cannot be read."""

    path: Path
    size: int
    header: SegmentHeader | None
    damage: Damage | None


class _Piece(NamedTuple):
    """A piece of the stream, whole records."""

    path: Path
    position: int
    records: bytes

    @property
    def end(self) -> int:
        """Position of what follows."""
        return self.position + len(self.records)


@dataclass(slots=True)
class Recording:
    """What one daemon has recorded.

    Attributes:
        name: of its files, without their endings.
        segments: in order; the oldest may have been deleted since.
        ring: where its newest part is, None where all of it is stored.
        ended: whether the daemon's end was met, after reading all of it.
    """

    name: str
    segments: list[Segment]
    ring: Path | None = None
    ended: bool = False
    _facts: dict[int, SessionFacts] = field(default_factory=dict)
    _unknown: set[int] = field(default_factory=set)

    @property
    def about(self) -> About | None:
        """What wrote it; None where no segment's header can be read."""
        for segment in self.segments:
            if segment.header is not None:
                return msgspec.json.decode(segment.header.about, type=About)
        return None

    def read(self) -> Iterator[Exchanges | Damage | Unread]:
        """Everything in it, in the order in which it was answered. Before the first Unread of a session comes
        the Damage that is why."""
        self.ended = False
        self._facts.clear()
        self._unknown.clear()
        for piece in self._pieces():
            if isinstance(piece, Damage):
                yield piece
            else:
                yield from self._records(piece)

    def _pieces(self) -> Iterator[_Piece | Damage]:
        """The stream, from its oldest part that is still there."""
        # Before the segments: what leaves the ring while they are read is in them.
        rest: list[_Piece] = []
        if self.ring is not None:
            try:
                rest = _read_ring(self.ring)
            except RecordingDamaged as error:
                yield Damage(self.ring, error)
        position = -1
        for segment in self.segments:
            if segment.header is None:
                if segment.damage is not None:
                    yield segment.damage
                position = -1
                continue
            start = segment.header.position
            if position not in (-1, start):
                reason = f"position {start} follows on position {position}: segments are missing"
                yield Damage(segment.path, RecordingDamaged(0, reason))
            position = start
            for found in _read_segment(segment, start):
                yield found
                # After damage it is unknown where the stream goes on.
                position = -1 if isinstance(found, Damage) else found.end
        for piece in rest:
            if piece.end > position:
                if -1 < position < piece.position:
                    reason = f"position {piece.position} follows on position {position}"
                    yield Damage(piece.path, RecordingDamaged(0, reason))
                fresh = max(position, piece.position)
                yield _Piece(piece.path, fresh, piece.records[fresh - piece.position :])
                position = piece.end

    def _records(self, piece: _Piece) -> Iterator[Exchanges | Damage | Unread]:
        path = piece.path
        try:
            for record in read_records(piece.records, piece.position):
                if record.kind is Kind.END:
                    self.ended = True
                elif record.kind is Kind.SESSION:
                    text = bytes(record.body).rstrip(b"\0")
                    self._facts[record.session] = msgspec.json.decode(text, type=SessionFacts)
                elif record.session in self._facts:
                    yield _exchanges(record, self._facts[record.session])
                else:
                    if record.session not in self._unknown:
                        self._unknown.add(record.session)
                        reason = (
                            f"session {record.session} is introduced nowhere before: what is of it is left"
                            " out"
                        )
                        yield Damage(path, RecordingDamaged(record.position, reason))
                    yield Unread(record.request, record.rows)
        except RecordingDamaged as error:
            yield Damage(path, error)
        except msgspec.DecodeError as error:
            yield Damage(path, RecordingDamaged(piece.position, f"a session's facts cannot be read: {error}"))


def is_recording(path: Path) -> bool:
    """Whether it looks like one: a directory, or a file that starts as a segment does."""
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(SEGMENT_MAGIC)) == SEGMENT_MAGIC
    except OSError:
        return False


def open_recordings(path: Path) -> list[Recording]:
    """All recordings in a directory, the oldest first; or the one segment that `path` is.

    Raises:
        NoRecording: there is none, or it may not be read.
        RecordingDamaged: a single segment has no header that can be read.
    """
    try:
        if not path.is_dir():
            segment = _segment(path)
            if segment.damage is not None:
                raise RecordingDamaged(0, f"{path}: {segment.damage.error.reason}")
            return [Recording(path.name.removesuffix(SEGMENT_SUFFIX), [segment])]
        by_name: dict[str, Recording] = {}
        for file in sorted(path.iterdir()):
            if file.name.endswith(SEGMENT_SUFFIX):
                name = file.name.removesuffix(SEGMENT_SUFFIX).rpartition(".")[0]
                by_name.setdefault(name, Recording(name, [])).segments.append(_segment(file))
            elif file.suffix == RING_SUFFIX and file.exists():
                by_name.setdefault(file.stem, Recording(file.stem, [])).ring = file
    except OSError as error:
        raise NoRecording(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    if not by_name:
        raise NoRecording(f"{path}: no recording is in it: sigd serve --record {path} makes one")
    return [by_name[name] for name in sorted(by_name)]


def _segment(path: Path) -> Segment:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return Segment(path, size, SegmentHeader.decode(file.read(SEGMENT_HEADER_BYTES)), None)
        except RecordingDamaged as error:
            return Segment(path, size, None, Damage(path, error))


def _read_segment(segment: Segment, position: int) -> Iterator[_Piece | Damage]:
    """The stream from there on."""
    with segment.path.open("rb") as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        for found in read_blocks(lambda offset, count: os.pread(descriptor, count, offset), size, position):
            if isinstance(found, RecordingDamaged):
                yield Damage(segment.path, found)
            else:
                yield _Piece(segment.path, found.position, found.records)


def _read_ring(path: Path) -> list[_Piece]:
    """What of the stream is in the ring, and perhaps not in the segments yet."""
    try:
        with path.open("rb") as file:
            descriptor = file.fileno()
            header = RingHeader.decode(os.pread(descriptor, RING_HEADER_BYTES, 0))
            for _ in range(_RING_TRIES):
                tail, head = _word(descriptor, RING_TAIL_WORD), _word(descriptor, RING_HEAD_WORD)
                pieces = [
                    _Piece(path, start, os.pread(descriptor, end - start, header.offset(start)))
                    for start, end in stretches(tail, head, header.capacity_bytes)
                ]
                if _word(descriptor, RING_TAIL_WORD) == tail:
                    return pieces
    except FileNotFoundError:
        # The daemon has ended meanwhile, and all is in the segments.
        return []
    except OSError as error:
        raise NoRecording(f"{path}: cannot be read: {error.strerror}") from None
    raise NoRecording(
        f"{path}: it is stored faster than it can be read: try again, or when the load is lower"
    )


def _word(descriptor: int, index: int) -> int:
    return int.from_bytes(os.pread(descriptor, 8, 8 * index), "little")


def _exchanges(record: Record, facts: SessionFacts) -> Exchanges:
    """Raises RecordingDamaged where the record is not as long as its rows need."""
    rows = record.rows
    response_bytes = response_frame_bytes(facts.outputs)
    request_bytes, rest = divmod(len(record.body), max(rows, 1))
    request_bytes -= response_bytes
    if rest or not rows or request_bytes % 8 or request_bytes < request_frame_bytes(facts.features):
        raise RecordingDamaged(
            record.position,
            f"{len(record.body)} bytes for {rows} requests of {facts.features} features and {facts.outputs}"
            " outputs",
        )
    words = np.frombuffer(record.body, np.uint64, rows * request_bytes // 8).reshape(rows, -1).copy()
    # The daemon's own use of this word ends with the recording: here the frame is as the client sent it.
    words[:, 0] = header_word(fields.SIGNAL_REQUEST.template_id, request_bytes, record.version)
    request = frame_dtype(fields.SIGNAL_REQUEST, facts.features, facts.outputs)
    response = frame_dtype(fields.SIGNAL_RESPONSE, facts.features, facts.outputs)
    return Exchanges(
        session=record.session,
        facts=facts,
        batch=record.batch,
        first=record.request,
        requests=np.ndarray((rows,), request, words.data, 0, (request_bytes,)),
        responses=np.frombuffer(record.body, response, rows, rows * request_bytes),
    )
