"""What is recorded of one client: called after its answers have been sent, while their bytes are still
there."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import msgspec

from sigd.wire.layout import RESPONSE_OUTPUTS_OFFSET
from sigd.wire.recording.format import RECORD, RING_HEAD_WORD, ROWS_MAX, Kind
from sigd.wire.recording.reader import SessionFacts
from sigd.wire.status import Transport

if TYPE_CHECKING:
    from sigd.daemon.recording.ring import Ring
    from sigd.daemon.serving.ports import Record, RecordInRing
    from sigd.daemon.serving.session import Session
    from sigd.models.history import InstrumentPlaces
    from sigd.wire.inbox import RequestInbox
    from sigd.wire.outbox import ResponseOutbox

_HEADER: Final = struct.Struct("<QQQQ")
"""A record's header as words, most of them the same for all records of a client."""
assert _HEADER.size == RECORD.size
_PACK_HEADER_INTO: Final = _HEADER.pack_into
_U32: Final = 0xFFFF_FFFF
_EXCHANGES: Final = Kind.EXCHANGES << 32


class Taps:
    """Makes the taps of one ring. A session that another model serves from now on gets another tap."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._sessions = 0
        # The last number of each client whose history is kept.
        self._numbers: WeakKeyDictionary[InstrumentPlaces, int] = WeakKeyDictionary()

    def open(self, session: Session, *, in_rings: bool) -> Tap:
        """The tap of a session whose inbox, outbox and model are there."""
        self._sessions += 1
        batcher = session.batcher
        spec, backend, history = batcher.spec, batcher.backend, session.history
        facts = SessionFacts(
            client=session.client_name,
            transport=(Transport.SHARED_MEMORY if in_rings else Transport.STREAM).name.lower(),
            model=batcher.name,
            path=os.fsencode(spec.path.absolute()).decode("utf-8", "replace"),
            sha256=spec.sha256.hex(),
            generation=batcher.generation,
            features=session.inbox.features,
            outputs=spec.answer_values,
            backend=backend.name,
            batch_rows_max=backend.batch_rows_max,
            sizes=dict(spec.sizes),
            history_steps=0 if spec.window is None or history is None else spec.window.steps,
            history_instruments_max=0 if history is None else history.instruments_max,
            time_axis=1 if spec.window is None else spec.window.time_axis,
            follows=0 if history is None else self._numbers.get(history, 0),
            states={} if spec.state is None else {one.before: one.after for one in spec.state.pairs},
        )
        if history is not None:
            self._numbers[history] = self._sessions
        return Tap(self._ring, self._sessions, facts, session.inbox, session.outbox)


class Tap:
    """One client. Each segment introduces it before its first record there, so each can be read alone.

    Attributes:
        introduced_in: the number of the last segment that introduces it; -1 is none.
    """

    __slots__ = (
        "_inbox",
        "_introduction",
        "_memory",
        "_outbox",
        "_ring",
        "_room_bytes",
        "_session",
        "_words",
        "introduced_in",
    )

    def __init__(
        self, ring: Ring, session: int, facts: SessionFacts, inbox: RequestInbox, outbox: ResponseOutbox
    ) -> None:
        """`session` is a number that no other client has in this recording."""
        self._ring = ring
        self._memory, self._words = ring.memory, ring.words
        self._session = session
        self._inbox = inbox
        self._outbox = outbox
        text = msgspec.json.encode(facts)
        size = RECORD.size + len(text) + -len(text) % 8
        head = RECORD.pack(size, Kind.SESSION, 0, session, 0, 0, 0, 0)
        self._introduction = (head + text).ljust(size, b"\0")
        self.introduced_in = -1
        self._room_bytes = ring.record_bytes_max - RECORD.size - size

    def fast_path(self) -> Record:
        """For `daemon.serving.fast_path`."""
        ring, inbox, tap = self._ring, self._inbox, self
        memory, words, pack_into = ring.memory, ring.words, _HEADER.pack_into
        header = inbox.header
        request, response = inbox.bytes[: inbox.frame_bytes], self._outbox.single
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

    def fast_path_in_ring(self, request: bytearray, outputs: memoryview) -> RecordInRing:
        """For `daemon.serving.fast_path_ring`. `request` is its copy of the frame without the padding,
        `outputs` are the model's."""
        ring, tap = self._ring, self
        memory, words = ring.memory, ring.words
        request_bytes, response_bytes = self._inbox.frame_bytes, self._outbox.frame_bytes
        response_header = self._outbox.header
        generation = self._outbox.generation_word
        request_at = _HEADER.size
        request_end = request_at + len(request)
        outputs_at = request_at + request_bytes + RESPONSE_OUTPUTS_OFFSET
        outputs_end = outputs_at + len(outputs)
        record_bytes = request_at + request_bytes + response_bytes
        # Where request and outputs belong it is zeroed, and so is what pads them.
        pack_into = struct.Struct(
            f"<4Q{request_bytes}x7Q{response_bytes - RESPONSE_OUTPUTS_OFFSET}x"
        ).pack_into
        first_word, second_word = self._head_words(record_bytes, 1)

        def record(
            sequence: int,
            client_time_ns: int,
            receive_time_ns: int,
            send_time_ns: int,
            instrument: int,
            outcome: int,
        ) -> None:
            start = ring.offset
            end = start + record_bytes
            if end > ring.limit or tap.introduced_in != ring.segment:
                if not tap.make_room(record_bytes, 1):
                    return
                start = ring.offset
                end = start + record_bytes
            pack_into(
                memory,
                start,
                first_word,
                second_word,
                0,
                ring.requests,
                response_header,
                sequence,
                client_time_ns,
                receive_time_ns,
                send_time_ns,
                instrument & _U32 | generation,
                outcome,
            )
            memory[start + request_at : start + request_end] = request
            memory[start + outputs_at : start + outputs_end] = outputs
            ring.requests += 1
            ring.offset = end
            words[RING_HEAD_WORD] = ring.base + end

        return record

    def record(self, rows: int, batch: int) -> None:
        """The oldest `rows` requests in the inbox have been answered with what the outbox encoded last.

        Args:
            batch: the same for all that ran together, of whatever client; 0 where it was one request, alone.
        """
        row_bytes = self._inbox.frame_bytes + self._outbox.frame_bytes
        most = min(self._room_bytes // row_bytes, ROWS_MAX) or 1
        if rows <= most:
            self._record(0, rows, batch)
            return
        for first in range(0, rows, most):
            self._record(first, min(most, rows - first), batch)

    def _record(self, first: int, rows: int, batch: int) -> None:
        ring, memory, inbox, outbox = self._ring, self._memory, self._inbox, self._outbox
        frame_bytes = inbox.frame_bytes
        request_bytes = rows * frame_bytes
        record_bytes = _HEADER.size + request_bytes + rows * outbox.frame_bytes
        start = ring.offset
        if start + record_bytes > ring.limit or self.introduced_in != ring.segment:
            if not self.make_room(record_bytes, rows):
                return
            start = ring.offset
        first_word, second_word = self._head_words(record_bytes, rows)
        _PACK_HEADER_INTO(memory, start, first_word, second_word, batch, ring.requests)
        middle, end = start + _HEADER.size + request_bytes, start + record_bytes
        request_at, response_at = inbox.head + first * frame_bytes, first * outbox.frame_bytes
        memory[start + _HEADER.size : middle] = inbox.bytes[request_at : request_at + request_bytes]
        memory[middle:end] = outbox.bytes[response_at : response_at + end - middle]
        ring.requests += rows
        ring.offset = end
        self._words[RING_HEAD_WORD] = ring.base + end

    def make_room(self, record_bytes: int, rows: int) -> bool:
        """For a record of that many rows, in a segment that says who the client is; False where they are
        dropped."""
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
        return record_bytes | _EXCHANGES | rows << 48, self._session | version << 32
