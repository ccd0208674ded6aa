"""The feature stream in C: to the bit what `PythonFeatureStream` gives, many times faster.

Importing this raises ImportError where it was not built, or where the C library's logarithms are not
Python's.
"""

from __future__ import annotations

import math
import struct
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from sigd.models.features.catalogue import FEATURE_COUNT, LOWER_BOUNDS, UPPER_BOUNDS, WINDOWS_NS
from sigd.models.features.formulas import distance_asymmetry
from sigd.models.features.native import _stream
from sigd.models.features.samples import Samples
from sigd.models.features.state import SCALARS, Entry, StreamState, within_reach
from sigd.models.market.batch import EventBatch
from sigd.models.market.errors import BookCrossed, BookError, BookGap
from sigd.models.market.events import DepthDiff, Level

_scalars = struct.Struct(f"{len(SCALARS)}q")
_entry = struct.Struct("qq" + "Qq" * 4)
_level = struct.Struct("qq")
_WORD: Final = 1 << 64


class NativeFeatureStream(_stream.Stream):
    """See `PythonFeatureStream`. Prices and sizes are below 2**61 units, and no level of a book is negative:
    any other event raises OverflowError."""

    features: npt.NDArray[np.float32]

    def __init__(
        self, *, tick_size_e8: int = 0, warmup_ns: int = WINDOWS_NS[-1], snapshot_levels: int = 0
    ) -> None:
        self.features = np.zeros(FEATURE_COUNT, np.float32)
        super().__init__(
            self.features.data,
            LOWER_BOUNDS.data,
            UPPER_BOUNDS.data,
            distance_asymmetry,
            tick_size_e8,
            warmup_ns,
            snapshot_levels,
        )

    @property
    def book_break(self) -> BookError | None:
        """As of `PythonFeatureStream`."""
        kind, *facts = self.last_break
        if kind == 0:
            return None
        return BookGap(facts[0], facts[1]) if kind == 1 else BookCrossed(*facts)

    def on_batch(self, batch: EventBatch, *, converged_only: bool = False) -> Samples:
        """As of `PythonFeatureStream`."""
        count = len(batch.events)
        index, mids = np.empty(count, np.int64), np.empty(count, np.float64)
        features = np.empty((count, FEATURE_COUNT), np.float32)
        samples = self.on_rows(
            np.ascontiguousarray(batch.events).data,
            np.ascontiguousarray(batch.levels, np.int64).data,
            features.data,
            index.data,
            mids.data,
            converged_only,
        )
        return Samples(index[:samples], mids[:samples], features[:samples])

    def __reduce__(self) -> tuple[object, tuple[StreamState]]:
        from sigd.models.features import restored_stream

        return restored_stream, (self.state(),)

    def state(self) -> StreamState:
        """All that a stream needs to go on from here."""
        scalars, quotes, trades, mids, bids, asks, kept = self.dump()
        by_name = dict(zip(SCALARS, _scalars.unpack(scalars), strict=True))
        # A side that is whole has no rank up to which it is known.
        for bit, name in ((1, "bids_known"), (2, "asks_known")):
            by_name[name] = 0 if by_name["whole"] & bit else by_name[name]
        now_ns = by_name["now_ns"]
        return StreamState(
            scalars=by_name,
            quotes=within_reach([entry[:6] for entry in _entries(quotes)], now_ns),
            trades=within_reach([entry[:6] for entry in _entries(trades)], now_ns),
            mids=within_reach([entry[:4] for entry in _entries(mids)], now_ns),
            bids=_levels(bids),
            asks=_levels(asks),
            kept=[
                DepthDiff(0, previous, last, tuple(_levels(levels)[:split]), tuple(_levels(levels)[split:]))
                for previous, last, split, levels in kept
            ],
        )

    @classmethod
    def from_state(cls, state: StreamState) -> Self:
        """A stream that goes on where another one stood."""
        stream = cls()
        stream.load(
            (
                _scalars.pack(*(state.scalars[name] for name in SCALARS)),
                _packed(state.quotes),
                _packed(state.trades),
                _packed(state.mids),
                _packed_levels(state.bids),
                _packed_levels(state.asks),
                [
                    (
                        diff.previous_update_id,
                        diff.last_update_id,
                        len(diff.bids),
                        _packed_levels([*diff.bids, *diff.asks]),
                    )
                    for diff in state.kept
                ],
            )
        )
        return stream


def _entries(content: bytes) -> list[Entry]:
    return [
        (time_ns, count, *(low + high * _WORD for low, high in zip(words[::2], words[1::2], strict=True)))
        for time_ns, count, *words in _entry.iter_unpack(content)
    ]


def _packed(entries: list[Entry]) -> bytes:
    packed = []
    for time_ns, count, *totals in entries:
        words: list[int] = []
        for total in (*totals, 0, 0, 0, 0)[:4]:
            words += (total % _WORD, total // _WORD)
        packed.append(_entry.pack(time_ns, count, *words))
    return b"".join(packed)


def _levels(content: bytes) -> list[Level]:
    return [(price, size) for price, size in _level.iter_unpack(content)]


def _packed_levels(levels: list[Level]) -> bytes:
    return b"".join(_level.pack(*level) for level in levels)


def _check_functions() -> None:
    """Raise ImportError where the C library gives other bits than Python's `math`: the features would
    differ."""
    value = 1e-9
    while value < 1e19:
        theirs = (math.log(value), math.log1p(value), math.asinh(value), math.sqrt(value))
        if _stream.functions(value) != theirs:
            raise ImportError(f"the C library's functions of {value} are not those of Python's math")
        value *= 1.37


_check_functions()
