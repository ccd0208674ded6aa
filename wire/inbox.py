"""The daemon's end of a request stream: requests stay where they arrived until they are answered.

One buffer holds, in this order, whole requests of one size waiting for their answers (the pending rows), then
bytes not looked at yet, then free space:

    0 <= head <= scanned = head + rows * frame_bytes <= tail <= capacity

Nothing is moved for a request on its way: its features are read and its echoed fields are copied from here.
When a header has been checked its word is free, and holds the row's receive time from then on. A frame of
another kind or size (a Heartbeat, a request of a newer version) waits until the rows before it are answered,
so the pending rows are always one block of equal strides, and answers to both kinds keep the order of
arrival.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from sigd.wire import fields
from sigd.wire.fields import FRAME_ALIGNMENT_BYTES, HEADER_BYTES
from sigd.wire.framer import FRAME_BYTES_MAX, Frame, check_header, check_length
from sigd.wire.layout import (
    REQUEST_FEATURES_OFFSET,
    WordArray,
    header_word,
    request_frame_bytes,
)

_WORD_BYTES: Final = 8


class RequestInbox:
    """Requests of one connection, in place.

    Attributes:
        bytes: the whole buffer as bytes.
        words: the same buffer as native u64; a frame at byte offset p starts at word p // 8.
        head: byte offset of the oldest pending row, a multiple of 8.
        rows: how many whole requests are pending.
        frame_bytes: their stride.
        header: their header, as one word.
        tail: byte offset of the end of what has arrived; 0 where nothing is pending and nothing waits to be
            scanned.
        storage: the buffer itself.
    """

    __slots__ = (
        "_all",
        "bytes",
        "features",
        "frame_bytes",
        "head",
        "header",
        "rows",
        "storage",
        "tail",
        "words",
    )

    def __init__(self, features: int, rows_max: int) -> None:
        """Room for `rows_max` requests of `features` features each, and always for two frames of any kind."""
        self.features = features
        self.frame_bytes = request_frame_bytes(features)
        capacity_bytes = max(rows_max * self.frame_bytes, 2 * FRAME_BYTES_MAX)
        # A buffer of this size comes from the allocator at least 16-byte aligned, so its words are.
        self.storage = bytearray(capacity_bytes)
        self.bytes = memoryview(self.storage)
        self.words = self.bytes.cast("Q")
        self._all = self.bytes[:]
        self.header = header_word(fields.SIGNAL_REQUEST.template_id, self.frame_bytes)
        self.head = 0
        self.rows = 0
        self.tail = 0

    def writable(self) -> memoryview:
        """Where the next bytes belong. Empty where the pending rows fill the buffer: then read no more for
        now."""
        tail = self.tail
        if tail == 0:
            return self._all
        head = self.head
        if head and len(self.bytes) - tail < FRAME_BYTES_MAX:
            pending_bytes = tail - head
            self.bytes[:pending_bytes] = self.bytes[head:tail]
            self.head = 0
            self.tail = tail = pending_bytes
        return self.bytes[tail:]

    def arrived(self, count_bytes: int) -> None:
        """`count_bytes` were written at the start of `writable()`."""
        self.tail += count_bytes
        assert self.tail <= len(self.bytes)

    @property
    def unscanned_bytes(self) -> int:
        """Bytes that arrived and are not part of a pending row yet."""
        return self.tail - self.head - self.rows * self.frame_bytes

    def scan(self, now_ns: int) -> Frame | None:
        """Turn arrived bytes into pending rows, all of them stamped as received at `now_ns`.

        Returns the next frame that is no request, taken out of the stream, for the caller to act on and scan
        again; None where there is nothing more to do: bytes are missing, or rows must be answered first.

        Raises:
            FrameError: a header is wrong. The rows before it are pending and may still be answered.
        """
        while True:
            offset = self.head + self.rows * self.frame_bytes
            have_bytes = self.tail - offset
            if have_bytes < HEADER_BYTES:
                return None
            word = self.words[offset // _WORD_BYTES]
            if word == self.header:
                if not self._take_rows(offset, have_bytes // self.frame_bytes, now_ns):
                    return None
                continue
            if self.rows:
                # Another kind of frame: it waits its turn. A wrong one is found out when its turn comes.
                return None
            header = check_header(word)
            if header.template_id == fields.SIGNAL_REQUEST.template_id:
                check_length("SignalRequest", header, request_frame_bytes(self.features))
                self.frame_bytes = header.frame_bytes
                self.header = word
                continue
            if have_bytes < header.frame_bytes:
                return None
            block = bytes(self.bytes[offset + HEADER_BYTES : offset + header.frame_bytes])
            self._advance(header.frame_bytes)
            return Frame(header, block)

    def _take_rows(self, offset: int, whole: int, now_ns: int) -> int:
        """Make the run of `whole` frames at `offset` pending, as far as their headers are equal; how many
        were."""
        if whole == 0:
            return 0
        if whole == 1:
            self.words[offset // _WORD_BYTES] = now_ns
            self.rows += 1
            return 1
        headers = np.ndarray((whole,), np.uint64, self.storage, offset, (self.frame_bytes,))
        equal = headers == self.header
        taken = whole if equal.all() else int(equal.argmin())
        headers[:taken] = now_ns
        self.rows += taken
        return taken

    def row_words(self, first: int, count: int) -> WordArray:
        """Pending rows first..first+count as u64 words, shape (count, frame_bytes / 8); word 0 is the receive
        time.

        A view: valid until `writable()` or `answered()` is called.
        """
        return np.ndarray(
            (count, self.frame_bytes // _WORD_BYTES),
            np.uint64,
            self.storage,
            self.head + first * self.frame_bytes,
        )

    def row_features(self, first: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Features of pending rows first..first+count, float32, shape (count, features). A view, as above."""
        return np.ndarray(
            (count, self.features),
            np.float32,
            self.storage,
            self.head + first * self.frame_bytes + REQUEST_FEATURES_OFFSET,
            (self.frame_bytes, 4),
        )

    def answered(self, count: int) -> None:
        """The oldest `count` pending rows are answered; their room is free."""
        assert 0 <= count <= self.rows
        self.rows -= count
        self._advance(count * self.frame_bytes)

    def _advance(self, count_bytes: int) -> None:
        self.head += count_bytes
        if self.head == self.tail:
            self.head = self.tail = 0


assert FRAME_ALIGNMENT_BYTES % _WORD_BYTES == 0
