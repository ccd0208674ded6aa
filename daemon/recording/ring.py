"""The daemon's end of the ring: where the next record goes, and when there is no room for it."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from typing import Final

from sigd.wire.recording.format import (
    RECORD,
    RING_DROPPED_WORD,
    RING_HEAD_WORD,
    RING_HEADER_BYTES,
    RING_TAIL_WORD,
    Kind,
    RingHeader,
)

_SHARE: Final = 4
"""A record takes no more than this part of the ring or of a segment, so that little is left empty at their
ends."""

_NUMBERS: Final = 1 << 40
"""More than there are segments."""


class Ring:
    """Written by one thread. A record is written to `memory` at `offset`, then `advance()` publishes it.

    Attributes:
        memory: the whole file, mapped and present.
        words: its header.
        offset: where in `memory` the next record goes.
        limit: up to where in `memory` there is room, as far as is known; past it `make_room()` is asked.
        base: what to add to an offset for its position in the stream.
        segment: number of the segment that the next record belongs to, a larger one after
            `introduce_again()`.
        requests: answered so far, those that found no room among them.
        record_bytes_max: the longest record.
    """

    __slots__ = (
        "_capacity_bytes",
        "_descriptor",
        "_first_number",
        "_stretch_bytes",
        "base",
        "limit",
        "memory",
        "offset",
        "record_bytes_max",
        "requests",
        "segment",
        "words",
    )

    def __init__(self, memory: mmap.mmap, header: RingHeader, descriptor: int = -1) -> None:
        """`memory` starts with that header, and is zero from there on; `descriptor` is closed with it."""
        self.memory = memory
        self._descriptor = descriptor
        self.words = memoryview(memory)[:RING_HEADER_BYTES].cast("Q")
        self._capacity_bytes = header.capacity_bytes
        self._stretch_bytes = header.stretch_bytes
        self.record_bytes_max = min(header.capacity_bytes, header.stretch_bytes) // _SHARE
        self.requests = 0
        self.segment = 0
        self._first_number = 0
        self.offset = self.limit = RING_HEADER_BYTES
        self.base = -RING_HEADER_BYTES

    @classmethod
    def create(cls, path: Path, header: RingHeader) -> Ring:
        """A new file in memory, all of it there before the first record. Raises OSError where there is none
        to be had."""
        unfinished = path.with_name(path.name + ".new")
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # For as long as this process lives. A process that gets an exclusive lock knows that none records
            # there.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            size = RING_HEADER_BYTES + header.capacity_bytes
            # Or a store could find that there is no memory left for its page, which ends the process.
            os.posix_fallocate(descriptor, 0, size)
            memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
            memory[:RING_HEADER_BYTES] = header.encode()
            unfinished.rename(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return cls(memory, header, descriptor)

    @property
    def head(self) -> int:
        """Position of the next record in the stream."""
        return self.base + self.offset

    @property
    def dropped(self) -> int:
        """Requests that found no room."""
        return self.words[RING_DROPPED_WORD]

    def advance(self, count_bytes: int) -> None:
        """That many bytes at `offset` are whole records."""
        self.offset += count_bytes
        self.words[RING_HEAD_WORD] = self.base + self.offset

    def make_room(self, count_bytes: int) -> bool:
        """Whether that many bytes may be written at `offset` now; no more than `record_bytes_max`.

        Where they do not fit in before the end of the ring or of the segment, what is left there stays empty.
        """
        while True:
            head = self.head
            free_to = self.words[RING_TAIL_WORD] + self._capacity_bytes
            whole_to = min(
                (head // length + 1) * length for length in (self._capacity_bytes, self._stretch_bytes)
            )
            self.segment = self._first_number + head // self._stretch_bytes
            self.offset = RING_HEADER_BYTES + head % self._capacity_bytes
            self.base = head - self.offset
            if head + count_bytes <= whole_to:
                self.limit = min(whole_to, free_to) - self.base
                return head + count_bytes <= free_to
            if whole_to > free_to:
                self.limit = self.offset
                return False
            filler = (whole_to - head) | Kind.FILLER << 32
            self.memory[self.offset : self.offset + 8] = filler.to_bytes(8, "little")
            self.advance(whole_to - head)

    def introduce_again(self) -> None:
        """The reader has not seen what was before: each client is introduced with its next record, as in a
        new segment."""
        # From here on segments have numbers in which no tap has been introduced.
        self._first_number += _NUMBERS
        self.segment += _NUMBERS

    def drop(self, requests: int) -> None:
        """Count requests that were answered and found no room."""
        self.requests += requests
        self.words[RING_DROPPED_WORD] += requests

    def end(self) -> None:
        """Nothing follows."""
        if self.make_room(RECORD.size):
            RECORD.pack_into(self.memory, self.offset, RECORD.size, Kind.END, 0, 0, 0, 0, 0, self.requests)
            self.advance(RECORD.size)

    def close(self) -> None:
        """No process records any more."""
        if self._descriptor >= 0:
            # The mapping has a descriptor of its own, which has the lock as well.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1
