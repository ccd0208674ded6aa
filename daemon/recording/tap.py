"""What is recorded of one client: called after its answers have been sent, while their bytes are still there."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from sigd.wire.layout import REQUEST_FEATURES_OFFSET, RESPONSE_OUTPUTS_OFFSET
from sigd.wire.recorded import SessionFacts
from sigd.wire.recording import RECORD, RING_HEAD_WORD, ROWS_MAX, Kind
from sigd.wire.status import Transport

if TYPE_CHECKING:
    from sigd.daemon.recording.ring import Ring
    from sigd.daemon.session import Session
    from sigd.wire.inbox import RequestInbox
    from sigd.wire.outbox import ResponseOutbox

_HEADER: Final = struct.Struct("<QQQQ")
"""A record's header as words, most of them the same for all records of a client."""
assert _HEADER.size == RECORD.size
_U32: Final = 0xFFFF_FFFF

Record = Callable[[], None]
"""Records the request that ran alone, at the start of the inbox, and its answer."""
RecordInRing = Callable[[tuple[int, int, int, int, int], int, int, int], None]
"""As `Record`, of a request that came through a ring: its header, sequence, client_time_ns, deadline_ns, and instrument
with what is above it, all as one; then the answer's receive_time_ns, send_time_ns and outcome. Neither slot is looked at
again: its client can write to both."""


class Taps:
    """Makes the taps of one ring. A session that another model serves from now on gets another tap."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._sessions = 0

    def open(self, session: Session, *, in_rings: bool) -> Tap:
        """The tap of a session whose inbox, outbox and model are there."""
        self._sessions += 1
        batcher = session.batcher
        spec, backend = batcher.spec, batcher.backend
        facts = SessionFacts(
            client=session.client_name,
            transport=(Transport.SHARED_MEMORY if in_rings else Transport.STREAM).name.lower(),
            model=batcher.name,
            path=os.fsencode(spec.path.absolute()).decode("utf-8", "replace"),
            sha256=spec.sha256.hex(),
            generation=batcher.generation,
            features=spec.features,
            outputs=spec.outputs,
            backend=backend.name,
            batch_rows_max=backend.batch_rows_max,
        )
        return Tap(self._ring, self._sessions, facts, session.inbox, session.outbox)


class Tap:
    """One client. Who it is goes before its first record in each segment, so that each can be read by itself.

    Attributes:
        introduced_in: the number of the last segment that says who it is; -1 is none.
    """

    __slots__ = ("_inbox", "_introduction", "_outbox", "_ring", "_session", "introduced_in")

    def __init__(
        self, ring: Ring, session: int, facts: SessionFacts, inbox: RequestInbox, outbox: ResponseOutbox
    ) -> None:
        """`session` is a number that no other client has in this recording."""
        self._ring = ring
        self._session = session
        self._inbox = inbox
        self._outbox = outbox
        text = msgspec.json.encode(facts)
        size = RECORD.size + len(text) + -len(text) % 8
        head = RECORD.pack(size, Kind.SESSION, 0, session, 0, 0, 0, 0)
        self._introduction = (head + text).ljust(size, b"\0")
        self.introduced_in = -1

    def lone(self) -> Record:
        """For `daemon.lone`."""
        ring, inbox, tap = self._ring, self._inbox, self
        memory, words, pack_into = ring.memory, ring.words, _HEADER.pack_into
        header = inbox.header
        request, response = inbox.bytes[: inbox.frame_bytes], self._outbox.lone
        request_at, response_at = _HEADER.size, _HEADER.size + len(request)
        record_bytes = response_at + len(response)
        first_word, second_word = self._head_words(record_bytes, 1)

        def record() -> None:
            start = ring.offset
            end = start + record_bytes
            if end > ring.limit or tap.introduced_in != ring.segment or inbox.header != header:
                tap.record(1, 0)
                return
            pack_into(memory, start, first_word, second_word, 0, ring.requests)
            middle = start + response_at
            memory[start + request_at : middle] = request
            memory[middle:end] = response
            ring.requests += 1
            ring.offset = end
            words[RING_HEAD_WORD] = ring.base + end

        return record

    def lone_in_ring(self, features: bytearray, outputs: memoryview) -> RecordInRing:
        """For `daemon.lone_ring`. `features` and `outputs` are where it has those of the request that it answered."""
        ring, tap = self._ring, self
        memory, words = ring.memory, ring.words
        request_bytes, response_bytes = self._inbox.frame_bytes, self._outbox.frame_bytes
        response_header = self._outbox.header
        generation = self._outbox.generation_word
        features_at = _HEADER.size + REQUEST_FEATURES_OFFSET
        features_end = features_at + len(features)
        outputs_at = _HEADER.size + request_bytes + RESPONSE_OUTPUTS_OFFSET
        outputs_end = outputs_at + len(outputs)
        record_bytes = _HEADER.size + request_bytes + response_bytes
        # All but features and outputs; where they belong, and what pads them, is zeroed.
        pack_into = struct.Struct(
            f"<4Q5Q{request_bytes - REQUEST_FEATURES_OFFSET}x7Q{response_bytes - RESPONSE_OUTPUTS_OFFSET}x"
        ).pack_into
        first_word, second_word = self._head_words(record_bytes, 1)

        def record(
            request: tuple[int, int, int, int, int], receive_time_ns: int, send_time_ns: int, outcome: int
        ) -> None:
            header, sequence, client_time_ns, deadline_ns, instrument = request
            start = ring.offset
            if (start + record_bytes > ring.limit or tap.introduced_in != ring.segment) and not tap.make_room(
                record_bytes, 1
            ):
                return
            start = ring.offset
            pack_into(
                memory,
                start,
                first_word,
                second_word,
                0,
                ring.requests,
                header,
                sequence,
                client_time_ns,
                deadline_ns,
                instrument,
                response_header,
                sequence,
                client_time_ns,
                receive_time_ns,
                send_time_ns,
                instrument & _U32 | generation,
                outcome,
            )
            memory[start + features_at : start + features_end] = features
            memory[start + outputs_at : start + outputs_end] = outputs
            ring.requests += 1
            ring.offset = start = start + record_bytes
            words[RING_HEAD_WORD] = ring.base + start

        return record

    def record(self, rows: int, batch: int) -> None:
        """The oldest `rows` requests in the inbox have been answered with what the outbox encoded last.

        Args:
            batch: the same for all that ran together, of whatever client; 0 where it was one request, alone.
        """
        row_bytes = self._inbox.frame_bytes + self._outbox.frame_bytes
        room = self._ring.record_bytes_max - RECORD.size - len(self._introduction)
        most = min(ROWS_MAX, max(1, room // row_bytes))
        for first in range(0, rows, most):
            self._record(first, min(most, rows - first), batch)

    def _record(self, first: int, rows: int, batch: int) -> None:
        ring, inbox, outbox = self._ring, self._inbox, self._outbox
        record_bytes = _HEADER.size + rows * (inbox.frame_bytes + outbox.frame_bytes)
        if not self.make_room(record_bytes, rows):
            return
        start = ring.offset
        end = start + record_bytes
        _HEADER.pack_into(ring.memory, start, *self._head_words(record_bytes, rows), batch, ring.requests)
        start += _HEADER.size
        for source, first_byte, count_bytes in (
            (inbox.bytes, inbox.head + first * inbox.frame_bytes, rows * inbox.frame_bytes),
            (outbox.bytes, first * outbox.frame_bytes, rows * outbox.frame_bytes),
        ):
            ring.memory[start : start + count_bytes] = source[first_byte : first_byte + count_bytes]
            start += count_bytes
        assert start == end
        ring.requests += rows
        ring.advance(record_bytes)

    def make_room(self, record_bytes: int, rows: int) -> bool:
        """For a record of that many rows, in a segment that says who the client is; False where they are dropped."""
        ring = self._ring
        while True:
            introduced = self.introduced_in == ring.segment
            introduction = b"" if introduced else self._introduction
            count_bytes = len(introduction) + record_bytes
            segment = ring.segment
            if ring.offset + count_bytes > ring.limit and not ring.make_room(count_bytes):
                ring.drop(rows)
                return False
            if ring.segment == segment:
                break
        if introduction:
            ring.memory[ring.offset : ring.offset + len(introduction)] = introduction
            ring.advance(len(introduction))
            self.introduced_in = ring.segment
        return True

    def _head_words(self, record_bytes: int, rows: int) -> tuple[int, int]:
        """The first two of a record of requests as the inbox has them now."""
        version = self._inbox.header >> 48
        return record_bytes | Kind.EXCHANGES << 32 | rows << 48, self._session | version << 32
