"""What happens in the market of one instrument, as its exchange reports it.

Prices and sizes are integers in units of 1e-8 (hence `_e8`): decimal strings of an exchange are represented
exactly, prices may be compared and used as keys, and sums over a window can be kept by adding and subtracting
without ever drifting. Times are the receiver's own clock in integer nanoseconds; only their differences are
used.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

UNITS_PER_ONE = 100_000_000
"""How many price or size units make 1.0."""

Level: TypeAlias = tuple[int, int]
"""One price level: (price_e8, size_e8). In a `DepthDiff` a size of 0 removes the level."""


class BestQuote(msgspec.Struct, frozen=True, gc=False):
    """The best bid and ask changed, in price or in size.

    Attributes:
        receive_ns: when it was received, ns.
        update_id: the exchange's order book update that it reflects.
        bid_price_e8, ask_price_e8: best prices, 1e-8 of the quote currency.
        bid_size_e8, ask_size_e8: what rests there, 1e-8 of the base currency.
    """

    receive_ns: int
    update_id: int
    bid_price_e8: int
    bid_size_e8: int
    ask_price_e8: int
    ask_size_e8: int


class Trade(msgspec.Struct, frozen=True, gc=False):
    """A trader took liquidity.

    Attributes:
        receive_ns: when it was received, ns.
        trade_id: the exchange's number for it.
        price_e8, size_e8: 1e-8 of the quote and of the base currency.
        aggressor: +1 where the buyer took, -1 where the seller did.
    """

    receive_ns: int
    trade_id: int
    price_e8: int
    size_e8: int
    aggressor: int


class DepthDiff(msgspec.Struct, frozen=True):
    """Levels of the book that changed between two updates.

    Attributes:
        receive_ns: when it was received, ns.
        previous_update_id: the last update of the message before this one; it must be where the book stands.
        last_update_id: where the book stands afterwards.
        bids, asks: the new size of each changed level; 0 removes the level.
    """

    receive_ns: int
    previous_update_id: int
    last_update_id: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]


class DepthSnapshot(msgspec.Struct, frozen=True):
    """The whole book (as deep as the exchange gives it) at one update.

    Attributes:
        receive_ns: when it was received, ns.
        last_update_id: the update at which it was taken.
        bids, asks: the levels, best first.
    """

    receive_ns: int
    last_update_id: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]


MarketEvent: TypeAlias = BestQuote | Trade | DepthDiff | DepthSnapshot
