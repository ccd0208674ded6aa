"""The state of a feature stream as plain numbers: the same whichever implementation it comes from or goes
to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sigd.models.features.catalogue import WINDOWS_NS
from sigd.models.market.events import DepthDiff, Level

Entry = tuple[int, ...]

SCALARS: Final = (
    *("tick", "warmup_ns", "begun_ns", "warm_at_ns", "now_ns", "depth_ns", "samples", "book_breaks"),
    *(
        "events_ignored",
        "book_ready",
        "quote_seen",
        "trade_seen",
        "trade_aged",
        "quote_ns",
        "bid",
        "bid_size",
    ),
    *("ask", "ask_size", "trade_ns", "trade_price", "aggressor", "since_quote_ns", "since_trade_ns"),
    *("mid_move_sign", "mid_move_ns", "synchronised", "at_snapshot", "update_id", "snapshot_levels"),
    *("bids_known", "asks_known", "whole"),
)
"""The names of the single numbers, in the order of the native stream's `dump`. `bids_known` and `asks_known`:
ranks, see `BookSide`; `whole`: 1 where the bids are known to be whole, plus 2 where the asks are."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """All that a stream needs to go on. Two streams that saw the same events have equal states.

    Attributes:
        scalars: by the names in SCALARS; truth values are 0 or 1.
        quotes, trades, mids: the entries of the windows' logs from the one that the longest window begins
        with. bids, asks: the levels of the book, worst first. kept: depth messages that wait for a snapshot.
    """

    scalars: dict[str, int]
    quotes: list[Entry]
    trades: list[Entry]
    mids: list[Entry]
    bids: list[Level]
    asks: list[Level]
    kept: list[DepthDiff]


def within_reach(entries: list[Entry], now_ns: int) -> list[Entry]:
    """The entries that a window may still begin with; the last one at or before the longest window's begin
    first."""
    first = 0
    while first + 1 < len(entries) and entries[first + 1][0] <= now_ns - WINDOWS_NS[-1]:
        first += 1
    return entries[first:]
