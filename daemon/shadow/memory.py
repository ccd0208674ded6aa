"""The memory of one shadow: a recorder's ring, then the board where its comparison stands. It is freed with
the last process that has it."""

from __future__ import annotations

import mmap
import os
from typing import Final

from sigd.daemon.shadow.statistics import STANDING_BYTES
from sigd.wire.recording.format import RING_HEADER_BYTES, RingHeader

RING_BYTES: Final = 8 << 20
"""Some 20,000 requests of 64 features with their answers."""
STRETCH_BYTES: Final = 1 << 20
"""A client is introduced once in each."""
_BOARD_OFFSET: Final = RING_HEADER_BYTES + RING_BYTES
assert _BOARD_OFFSET % mmap.ALLOCATIONGRANULARITY == 0


def make_memory() -> int:
    """A descriptor of it, all of it there, with an empty ring. Raises OSError where there is none to be
    had."""
    descriptor = os.memfd_create("sigd-shadow", os.MFD_CLOEXEC)
    try:
        # Or a store could find that there is no memory left for its page, which ends the process.
        os.posix_fallocate(descriptor, 0, _BOARD_OFFSET + STANDING_BYTES)
        os.pwrite(descriptor, RingHeader(RING_BYTES, STRETCH_BYTES, bytes(16), b"{}").encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_ring(descriptor: int) -> tuple[mmap.mmap, RingHeader]:
    """The ring with its header."""
    memory = mmap.mmap(descriptor, _BOARD_OFFSET, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return memory, RingHeader.decode(memory[:RING_HEADER_BYTES])


def map_board(descriptor: int) -> mmap.mmap:
    """The memory for a `Board`."""
    return mmap.mmap(descriptor, STANDING_BYTES, mmap.MAP_SHARED, offset=_BOARD_OFFSET)
