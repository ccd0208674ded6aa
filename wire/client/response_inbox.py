"""The client's end of a response stream: answers are kept in the order of arrival until they are taken.

The counterpart of `outbox`, which writes them. No I/O. One buffer holds whole answers (the rows), then bytes
not looked at yet, then free space:

    0 <= head <= head + rows * frame_bytes <= tail <= capacity

Control frames are handed out as soon as they are met, ahead of answers that are not taken yet: a Goodbye or
Reject should be known early. A longer answer of a newer daemon is cut to the known part, so that all rows
have one stride.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sigd.wire import fields
from sigd.wire.fields import HEADER_BYTES
from sigd.wire.framer import FRAME_BYTES_MAX, Frame, check_header, check_length
from sigd.wire.layout import RESPONSE_OUTPUTS_OFFSET, frame_dtype, header_word, response_frame_bytes
from sigd.wire.status import Status

_RESPONSE: Final = struct.Struct("<QQQQIIIHH")
_STATUSES: Final[dict[int, int]] = {int(status): status for status in Status}


class Response(NamedTuple):
    """One answer; the fields are those of SignalResponse.

    Attributes:
        status: a Status, or the plain number where this side does not know it.
        outputs: float32, shape (m,); NaN unless the status is OK. The caller's own copy.
    """

    sequence: int
    client_time_ns: int
    receive_time_ns: int
    send_time_ns: int
    instrument_id: int
    model_generation: int
    infer_ns: int
    status: int
    batch_rows: int
    outputs: npt.NDArray[np.float32]

    @property
    def ok(self) -> bool:
        """The model answered, in time."""
        return self.status == Status.OK


assert HEADER_BYTES + _RESPONSE.size == RESPONSE_OUTPUTS_OFFSET
assert Response._fields == tuple(field.name for field in fields.SIGNAL_RESPONSE.fields)


class ResponseInbox:
    """Answers of one connection: `writable()` -> bytes come in -> `arrived()` -> `scan()` -> `take()`.

    Attributes:
        outputs: m, outputs per answer.
        frame_bytes: bytes of one answer as it is kept.
        dtype: of the arrays that `take` gives; the whole frame, see layout.frame_dtype.
        rows: how many whole answers are there to take.
    """

    def __init__(self, outputs: int) -> None:
        """Raises ValueError where no frame can carry that many outputs."""
        self.outputs = outputs
        self.frame_bytes = response_frame_bytes(outputs)
        self.dtype = frame_dtype(fields.SIGNAL_RESPONSE, outputs=outputs)
        self.rows = 0
        self._header = header_word(fields.SIGNAL_RESPONSE.template_id, self.frame_bytes)
        self._head = 0
        self._tail = 0
        self._allocate(2 * FRAME_BYTES_MAX)

    def _allocate(self, capacity_bytes: int) -> None:
        self._storage = np.zeros(capacity_bytes, np.uint8)
        self._bytes = self._storage.data
        self._words = self._bytes.cast("Q")

    def writable(self) -> memoryview:
        """Where the next bytes belong; never empty: the buffer grows with the answers that are not taken."""
        if self._head == self._tail:
            self._head = self._tail = 0
        elif len(self._bytes) - self._tail < FRAME_BYTES_MAX:
            waiting = self._bytes[self._head : self._tail]
            if 2 * len(waiting) > len(self._bytes):
                self._allocate(2 * len(self._bytes))
            self._bytes[: len(waiting)] = waiting
            self._head, self._tail = 0, len(waiting)
        return self._bytes[self._tail :]

    def arrived(self, count_bytes: int) -> None:
        """`count_bytes` were written at the start of `writable()`."""
        self._tail += count_bytes
        assert self._tail <= len(self._bytes)

    def feed(self, data: bytes) -> None:
        """Bytes that came in elsewhere, for example behind the Welcome."""
        while data:
            room = self.writable()
            part = data[: len(room)]
            room[: len(part)] = part
            self.arrived(len(part))
            data = data[len(part) :]

    def scan(self) -> Frame | None:
        """Turn arrived bytes into rows.

        Returns the next frame that is no answer, taken out of the stream, for the caller to act on and scan
        again; None where bytes are missing.

        Raises:
            FrameError: the bytes that stand next are no frame. The rows before them may still be taken.
        """
        while True:
            offset = self._head + self.rows * self.frame_bytes
            have_bytes = self._tail - offset
            if have_bytes < HEADER_BYTES:
                return None
            word = self._words[offset // 8]
            frame_bytes = self.frame_bytes
            if word != self._header:
                header = check_header(word)
                if header.template_id != fields.SIGNAL_RESPONSE.template_id:
                    if have_bytes < header.frame_bytes:
                        return None
                    block = bytes(self._bytes[offset + HEADER_BYTES : offset + header.frame_bytes])
                    self._cut(offset, header.frame_bytes)
                    return Frame(header, block)
                check_length("SignalResponse", header, self.frame_bytes)
                frame_bytes = header.frame_bytes
            run = self._run(offset, have_bytes // frame_bytes, frame_bytes, word)
            if run == 0:
                return None
            if frame_bytes != self.frame_bytes:
                self._narrow(offset, run, frame_bytes)
            self.rows += run

    def _run(self, offset: int, whole: int, stride: int, word: int) -> int:
        """How many of `whole` frames from `offset` on start with `word`."""
        if whole <= 1:
            return whole
        headers = np.ndarray((whole,), np.uint64, self._storage, offset, (stride,))
        equal = headers == word
        return whole if equal.all() else int(equal.argmin())

    def _narrow(self, offset: int, run: int, stride: int) -> None:
        """Keep the known part of each of `run` longer frames, side by side."""
        known = np.ndarray((run, self.frame_bytes), np.uint8, self._storage, offset, (stride, 1)).tobytes()
        self._bytes[offset : offset + len(known)] = known
        self._cut(offset + len(known), run * stride - len(known))

    def _cut(self, offset: int, count_bytes: int) -> None:
        """Take bytes out; what follows moves up."""
        self._bytes[offset : self._tail - count_bytes] = self._bytes[offset + count_bytes : self._tail]
        self._tail -= count_bytes

    def take_one(self) -> Response:
        """The oldest answer; `rows` must be at least 1."""
        assert self.rows > 0
        offset = self._head
        self._head += self.frame_bytes
        self.rows -= 1
        *others, status, batch_rows = _RESPONSE.unpack_from(self._bytes, offset + HEADER_BYTES)
        outputs = np.frombuffer(self._bytes, np.float32, self.outputs, offset + RESPONSE_OUTPUTS_OFFSET)
        return Response._make((*others, _STATUSES.get(status, status), batch_rows, outputs.copy()))

    def take(self, count: int) -> npt.NDArray[np.void]:
        """The oldest `count` answers, a structured array of `dtype`, copied; `rows` must be at least
        `count`."""
        assert 0 <= count <= self.rows
        taken = np.ndarray((count,), self.dtype, self._storage, self._head).copy()
        self._head += count * self.frame_bytes
        self.rows -= count
        return taken
