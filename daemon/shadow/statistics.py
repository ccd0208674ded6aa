"""How a comparison stands, told by the process that compares to the daemon through memory that both have
mapped.

Two places take turns, each with a number that rises and a checksum over all of it. Neither side waits for the
other: the reader takes the newest place that is whole, so a writer that is killed in the middle, or a
processor that lets others see its stores in another order, costs one look and no wrong number.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from dataclasses import dataclass
from typing import Final

import msgspec

DIFFERENCE_BOUNDS: Final = tuple(10.0**power for power in range(-6, 3))
"""Of the buckets that differences are counted in."""
OUTPUTS_SHOWN: Final = 64
"""The distribution of that many outputs is told, the first."""
STANDING_BYTES: Final = 16_384
"""Of the memory for a `Board`."""
_PLACE_BYTES: Final = STANDING_BYTES // 2
_HEAD: Final = struct.Struct("<QII")
"""Number, bytes of the message, checksum of both and of the message."""


class OutputStatistics(msgspec.Struct, frozen=True):
    """How one output was distributed lately: see `sigd.daemon.shadow.comparison.Drift`.

    Attributes:
        drift: None where the served model's output has not varied.
    """

    served_mean: float
    served_deviation: float
    shadow_mean: float
    shadow_deviation: float
    drift: float | None


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What has been counted since the daemon's start, of rows that were answered OK.

    Attributes:
        compared: rows that both models answered with numbers.
        agreed: of these, rows on which both would decide alike, see
            `sigd.models.accuracy.decisions`.
        skipped: rows that there was no time for, or that another shape was promised for.
        left_out: rows that are not in the sample.
        failed: rows that the shadow failed on, or gave NaN or infinity for.
        differences: compared rows by how far the outputs that are furthest apart are apart: in each bucket of
            DIFFERENCE_BOUNDS, and beyond.
        difference_sum, difference_max: of the same.
        generation: of the served model that `outputs` are compared with; 0 before the first row.
        outputs: the first OUTPUTS_SHOWN.
    """

    compared: int = 0
    agreed: int = 0
    skipped: int = 0
    left_out: int = 0
    failed: int = 0
    differences: list[int] = msgspec.field(default_factory=lambda: [0] * (len(DIFFERENCE_BOUNDS) + 1))
    difference_sum: float = 0.0
    difference_max: float = 0.0
    generation: int = 0
    outputs: list[OutputStatistics] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    number: int
    statistics: Statistics


class Board:
    """The memory: one process writes to it, another reads."""

    def __init__(self, memory: mmap.mmap) -> None:
        """`memory` is of STANDING_BYTES, all zero at first."""
        self._memory = memory
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Statistics)
        newest = self._newest()
        self._number = 0 if newest is None else newest.number
        self._last = Statistics() if newest is None else newest.statistics

    def write(self, statistics: Statistics) -> None:
        """From now on it is that."""
        message = self._encoder.encode(statistics)
        assert _HEAD.size + len(message) <= _PLACE_BYTES, f"{len(message)} bytes"
        self._number += 1
        start = self._number % 2 * _PLACE_BYTES
        self._memory[start + _HEAD.size : start + _HEAD.size + len(message)] = message
        _HEAD.pack_into(self._memory, start, self._number, len(message), _checksum(self._number, message))

    def read(self) -> Statistics:
        """As it was written last, or before that where a write is under way."""
        newest = self._newest()
        if newest is not None:
            self._last = newest.statistics
        return self._last

    def _newest(self) -> _Place | None:
        found = [place for place in map(self._at, (0, _PLACE_BYTES)) if place is not None]
        return max(found, key=lambda place: place.number, default=None)

    def _at(self, start: int) -> _Place | None:
        number, count_bytes, checksum = _HEAD.unpack_from(self._memory, start)
        message = self._memory[start + _HEAD.size : start + _PLACE_BYTES][:count_bytes]
        if not number or len(message) != count_bytes or _checksum(number, message) != checksum:
            return None
        return _Place(number, self._decoder.decode(message))


def _checksum(number: int, message: bytes) -> int:
    return zlib.crc32(message, zlib.crc32(_HEAD.pack(number, len(message), 0)))
