"""Market events as columns: one row an event in an array of 64-byte records, the levels of the book in
another.

This is the form in which a history is kept and in which the native feature stream takes it: no Python object
an event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, Level, MarketEvent, Trade

QUOTE: Final = 1
TRADE: Final = 2
DIFF: Final = 3
SNAPSHOT: Final = 4

EVENT_DTYPE: Final = np.dtype(
    [
        ("kind", np.int64),
        ("receive_ns", np.int64),
        ("id", np.int64),
        ("previous_id", np.int64),
        ("values", np.int64, (4,)),
    ]
)
"""`id`: update_id, trade_id or last_update_id. `values` of a quote: bid price, bid size, ask price, ask size;
of a trade: price, size, aggressor, 0; of depth: the rows of `levels` at which its bids begin, its asks begin
and its asks end, then 0."""

Levels = npt.NDArray[np.int64]
_EVENTS_TOGETHER: Final = 8192


class EventBatch(NamedTuple):
    """Events of one instrument in the order they were received.

    Attributes:
        events: EVENT_DTYPE, shape (n,).
        levels: int64, shape (m, 2): price_e8, size_e8.
    """

    events: npt.NDArray[np.void]
    levels: Levels


def batches_of(events: Iterable[MarketEvent], events_max: int = _EVENTS_TOGETHER) -> Iterator[EventBatch]:
    """The events in batches of at most `events_max`.

    Raises:
        OverflowError: a number is beyond 64 bits.
    """
    stream = iter(events)
    while chunk := list(islice(stream, events_max)):
        rows: list[tuple[int, int, int, int, tuple[int, int, int, int]]] = []
        levels: list[Level] = []
        for event in chunk:
            if isinstance(event, BestQuote):
                values = (event.bid_price_e8, event.bid_size_e8, event.ask_price_e8, event.ask_size_e8)
                rows.append((QUOTE, event.receive_ns, event.update_id, 0, values))
            elif isinstance(event, Trade):
                values = (event.price_e8, event.size_e8, event.aggressor, 0)
                rows.append((TRADE, event.receive_ns, event.trade_id, 0, values))
            else:
                bids = len(levels)
                levels += event.bids
                asks = len(levels)
                levels += event.asks
                values = (bids, asks, len(levels), 0)
                if isinstance(event, DepthDiff):
                    previous = event.previous_update_id
                    rows.append((DIFF, event.receive_ns, event.last_update_id, previous, values))
                else:
                    rows.append((SNAPSHOT, event.receive_ns, event.last_update_id, 0, values))
        yield EventBatch(np.array(rows, EVENT_DTYPE), np.array(levels, np.int64).reshape(-1, 2))


def events_of(batch: EventBatch) -> Iterator[MarketEvent]:
    """The events of a batch, one object each."""
    levels: list[Level] = [(price, size) for price, size in batch.levels.tolist()]
    for kind, receive_ns, number, previous, values in batch.events.tolist():
        first, second, third, fourth = values.tolist()
        if kind == QUOTE:
            yield BestQuote(receive_ns, number, first, second, third, fourth)
        elif kind == TRADE:
            yield Trade(receive_ns, number, first, second, third)
        elif kind == DIFF:
            yield DepthDiff(
                receive_ns, previous, number, tuple(levels[first:second]), tuple(levels[second:third])
            )
        else:
            yield DepthSnapshot(receive_ns, number, tuple(levels[first:second]), tuple(levels[second:third]))
