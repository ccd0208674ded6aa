"""Rows that were answered, taken out of a recorder's ring in batches. No I/O."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from sigd.wire import fields
from sigd.wire.layout import frame_dtype, response_frame_bytes
from sigd.wire.recording.format import (
    RING_HEAD_WORD,
    RING_HEADER_BYTES,
    RING_TAIL_WORD,
    Kind,
    Record,
    RingHeader,
    read_records,
    stretches,
)
from sigd.wire.recording.reader import SessionFacts
from sigd.wire.status import Status

GATHERED_ROWS_MAX: Final = 1024
"""So many are copied before they run, and their room in the ring is free again."""


class Rows(NamedTuple):
    """Rows that one generation of the served model answered OK.

    Attributes:
        features: shape (rows, features).
        outputs: what was answered, shape (rows, outputs).
    """

    generation: int
    features: npt.NDArray[np.float32]
    outputs: npt.NDArray[np.float32]


class RowReader:
    """Takes all there is, in order, and frees it."""

    def __init__(self, memory: mmap.mmap, header: RingHeader, features: int, outputs: int) -> None:
        """
        Args:
            memory: of the ring.
            features, outputs: rows of this shape are taken.
        """
        self._view = memoryview(memory)
        self._words = self._view[:RING_HEADER_BYTES].cast("Q")
        self._header = header
        self._shape = features, outputs
        self._request = frame_dtype(fields.SIGNAL_REQUEST, features, outputs)
        self._response = frame_dtype(fields.SIGNAL_RESPONSE, features, outputs)
        self._response_bytes = response_frame_bytes(outputs)
        self._fits: dict[int, bool] = {}
        """By session: whether it is of that shape."""
        self._seen = self._words[RING_TAIL_WORD]
        self._gathered = _Gathered()
        self._skipped = 0

    def skip_all(self) -> None:
        """Begin with what comes from now on: a row in the ring may have ended the reader before this one."""
        for record in self._records(self._words[RING_HEAD_WORD]):
            if record.kind is Kind.EXCHANGES:
                self._skipped += record.rows
        self._seen = self._words[RING_TAIL_WORD] = self._words[RING_HEAD_WORD]
        self._fits.clear()

    def look(self) -> Iterator[Rows]:
        """What there was at the last look: by now every processor sees all of it, in whatever order it was
        written."""
        seen, self._seen = self._seen, self._words[RING_HEAD_WORD]
        for record in self._records(seen):
            if record.kind is Kind.SESSION:
                facts = msgspec.json.decode(bytes(record.body).rstrip(b"\0"), type=SessionFacts)
                self._fits[record.session] = (facts.features, facts.outputs) == self._shape
            elif record.kind is Kind.EXCHANGES:
                if not self._fits.get(record.session, False):
                    self._skipped += record.rows
                    continue
                request_bytes = len(record.body) // record.rows - self._response_bytes
                if request_bytes != self._gathered.request_bytes or self._gathered.rows >= GATHERED_ROWS_MAX:
                    yield from self._give(record.position)
                self._gathered.add(record, request_bytes)
        yield from self._give(seen)

    def take_skipped(self) -> int:
        """Rows, since the last call, that did not fit, or whose session was introduced before this reader
        came."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def close(self) -> None:
        """Let the ring go."""
        self._words.release()
        self._view.release()

    def _records(self, end: int) -> Iterator[Record]:
        """From the tail on. A session is introduced anew in each stretch, and only those that talk."""
        header = self._header
        for start, stop in stretches(
            self._words[RING_TAIL_WORD], end, header.capacity_bytes, header.stretch_bytes
        ):
            if not start % header.stretch_bytes:
                self._fits.clear()
            offset = header.offset(start)
            yield from read_records(self._view[offset : offset + stop - start], start)

    def _give(self, end: int) -> Iterator[Rows]:
        """What has been gathered; the ring up to `end` is free."""
        gathered, self._gathered = self._gathered, _Gathered()
        self._words[RING_TAIL_WORD] = end
        if gathered.rows:
            shape, strides = (gathered.rows,), (gathered.request_bytes,)
            requests = np.ndarray(shape, self._request, b"".join(gathered.requests), 0, strides)
            responses = np.frombuffer(b"".join(gathered.responses), self._response)
            good = responses["status"] == Status.OK
            generations = responses["model_generation"]
            for generation in np.unique(generations[good]).tolist():
                own = good & (generations == generation)
                yield Rows(generation, requests["features"][own], responses["outputs"][own])


class _Gathered:
    """Requests of one size with their answers, copied."""

    def __init__(self) -> None:
        self.request_bytes = 0
        self.rows = 0
        self.requests: list[bytes] = []
        self.responses: list[bytes] = []

    def add(self, record: Record, request_bytes: int) -> None:
        self.request_bytes = request_bytes
        self.rows += record.rows
        middle = record.rows * request_bytes
        self.requests.append(bytes(record.body[:middle]))
        self.responses.append(bytes(record.body[middle:]))
