"""The features of one instrument, updated event by event.

A sample is taken at every quote and every trade once the stream is warm: the order book is synchronised and
the first quote lies at least the warm-up time (by default the longest window) back. Depth messages update the
book and give
no sample: the touch moves faster than L2.

The same events give the same bits: all that accumulates is integer, and the few floating-point operations of
a sample depend on those integers alone. For the same reason no feature can be denormal: each is 0, or a
quotient, root or logarithm of integers, far from the smallest float32.
"""

from __future__ import annotations

import struct
import sys
from math import gcd
from typing import Self

import numpy as np
import numpy.typing as npt

from sigd.models.features.catalogue import FEATURE_COUNT, LOWER_BOUNDS, UPPER_BOUNDS, WINDOWS_NS
from sigd.models.features.formulas import (
    NO_BOOK,
    Row,
    activity_row,
    age,
    book_row,
    knows_enough,
    order_flow_row,
    return_row,
    touch_row,
    trade_row,
    volatility_row,
)
from sigd.models.features.samples import Samples
from sigd.models.features.state import StreamState, within_reach
from sigd.models.features.windows import WindowLog
from sigd.models.market.batch import EventBatch, events_of
from sigd.models.market.book import OrderBook
from sigd.models.market.errors import BookError
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, MarketEvent, Trade

_pack_features = struct.Struct(f"{FEATURE_COUNT}f").pack_into
_NEVER_NS = sys.maxsize


class PythonFeatureStream:
    """Turns market events of one instrument into feature vectors. What the native stream does, readable; it
    runs where that one was not built, and is what it is checked against.

    Attributes:
        features: float32, shape (64,), the last sample; the same array for life, overwritten by each sample.
            Always finite and within the bounds of the catalogue.
        mid_e8: the mid of the last quote, 1e-8 of the quote currency; 0.0 before the first.
        tick_size_e8: the price step in use, 1e-8; 0 while it is not known.
        samples: how many samples there were.
        book_breaks: how often the book lost its place (a gap, a crossed book). No sample is taken from then
            until the next snapshot.
        book_break: what the last of them was; None before the first.
        events_ignored: quotes and trades that cannot be meant: a bid not below the ask, a price or size not
            above 0.
    """

    def __init__(
        self, *, tick_size_e8: int = 0, warmup_ns: int = WINDOWS_NS[-1], snapshot_levels: int = 0
    ) -> None:
        """
        Args:
            tick_size_e8: the price step in units of 1e-8. 0: taken from the first depth snapshot, as the
                greatest common divisor of its prices.
            warmup_ns: how long after the first quote samples begin. Windows reach back to the first quote at
                most.
        """
        self.features: npt.NDArray[np.float32] = np.zeros(FEATURE_COUNT, np.float32)
        self.mid_e8 = 0.0
        self.tick_size_e8 = tick_size_e8
        self.samples = 0
        self.book_breaks = 0
        self.book_break: BookError | None = None
        self.events_ignored = 0
        self._buffer = self.features.data
        self._warmup_ns = warmup_ns
        self._begun_ns = _NEVER_NS
        self._warm_at_ns = _NEVER_NS
        self._now_ns = 0
        self._book = OrderBook(snapshot_levels)
        self._book_ready = False
        self._book_row: Row = NO_BOOK
        self._depth_ns = 0
        self._quote: BestQuote | None = None
        self._trade: Trade | None = None
        self._since_quote_ns = 0
        self._since_trade_ns = 0
        self._trade_aged = False
        self._mid_move_sign = 0
        self._mid_move_ns = 0
        # Each entry begins with its time. Quotes: number, e, |e|, qb - qa, qb + qa.
        self._quotes = WindowLog(WINDOWS_NS, (0, 0, 0, 0, 0, 0))
        # Trades: number, s, s q, q, p q.
        self._trades = WindowLog(WINDOWS_NS, (0, 0, 0, 0, 0, 0))
        # Changes of the mid: twice the mid (an integer), then the totals of d^2 and of the d^2 of rises, d in
        # that unit.
        self._mids = WindowLog(WINDOWS_NS, (0, 0, 0, 0))

    @property
    def warm(self) -> bool:
        """Whether a quote or trade received now would be a sample."""
        return self._book_ready and self._now_ns >= self._warm_at_ns

    @property
    def converged(self) -> bool:
        """Whether a stream of the same market that began earlier, with the same tick, would have given the
        last sample too, to the bit. True once all windows are full, a trade lies before the last event, the
        mid has moved and the features of the book lie within what its snapshot covered."""
        return (
            self._trade_aged
            and self._mid_move_sign != 0
            and self._now_ns >= self._begun_ns + WINDOWS_NS[-1]
            and knows_enough(self._book)
        )

    def __reduce__(self) -> tuple[object, tuple[StreamState]]:
        from sigd.models.features import restored_stream

        return restored_stream, (self.state(),)

    def state(self) -> StreamState:
        """All that a stream needs to go on from here."""
        book, quote, trade = self._book, self._quote, self._trade
        scalars = {
            "tick": self.tick_size_e8,
            "warmup_ns": self._warmup_ns,
            "begun_ns": self._begun_ns,
            "warm_at_ns": self._warm_at_ns,
            "now_ns": self._now_ns,
            "depth_ns": self._depth_ns,
            "samples": self.samples,
            "book_breaks": self.book_breaks,
            "events_ignored": self.events_ignored,
            "book_ready": int(self._book_ready),
            "quote_seen": int(quote is not None),
            "trade_seen": int(trade is not None),
            "trade_aged": int(self._trade_aged),
            "quote_ns": 0 if quote is None else quote.receive_ns,
            "bid": 0 if quote is None else quote.bid_price_e8,
            "bid_size": 0 if quote is None else quote.bid_size_e8,
            "ask": 0 if quote is None else quote.ask_price_e8,
            "ask_size": 0 if quote is None else quote.ask_size_e8,
            "trade_ns": 0 if trade is None else trade.receive_ns,
            "trade_price": 0 if trade is None else trade.price_e8,
            "aggressor": 0 if trade is None else trade.aggressor,
            "since_quote_ns": self._since_quote_ns,
            "since_trade_ns": self._since_trade_ns,
            "mid_move_sign": self._mid_move_sign,
            "mid_move_ns": self._mid_move_ns,
            **book.scalars(),
        }
        return StreamState(
            scalars=scalars,
            quotes=within_reach(self._quotes.entries, self._now_ns),
            trades=within_reach(self._trades.entries, self._now_ns),
            mids=within_reach(self._mids.entries, self._now_ns),
            bids=book.bids.levels(),
            asks=book.asks.levels(),
            kept=book.kept,
        )

    @classmethod
    def from_state(cls, state: StreamState) -> Self:
        """A stream that goes on where another one stood."""
        scalars = state.scalars
        stream = cls(tick_size_e8=scalars["tick"], warmup_ns=scalars["warmup_ns"])
        stream._begun_ns, stream._warm_at_ns = scalars["begun_ns"], scalars["warm_at_ns"]
        stream._now_ns, stream._depth_ns = scalars["now_ns"], scalars["depth_ns"]
        stream.samples, stream.book_breaks = scalars["samples"], scalars["book_breaks"]
        stream.events_ignored = scalars["events_ignored"]
        stream._book_ready, stream._trade_aged = bool(scalars["book_ready"]), bool(scalars["trade_aged"])
        if scalars["quote_seen"]:
            sizes = scalars["bid"], scalars["bid_size"], scalars["ask"], scalars["ask_size"]
            stream._quote = BestQuote(scalars["quote_ns"], 0, *sizes)
        if scalars["trade_seen"]:
            stream._trade = Trade(scalars["trade_ns"], 0, scalars["trade_price"], 0, scalars["aggressor"])
        stream._since_quote_ns, stream._since_trade_ns = scalars["since_quote_ns"], scalars["since_trade_ns"]
        stream._mid_move_sign, stream._mid_move_ns = scalars["mid_move_sign"], scalars["mid_move_ns"]
        for log, entries in (
            (stream._quotes, state.quotes),
            (stream._trades, state.trades),
            (stream._mids, state.mids),
        ):
            log.begin_with(entries)
        stream.mid_e8 = stream._mids.newest[1] / 2
        stream._book = OrderBook.from_state(scalars, state.bids, state.asks, state.kept)
        stream._book_row = book_row(stream._book)
        return stream

    def on_batch(self, batch: EventBatch, *, converged_only: bool = False) -> Samples:
        """Take a batch of events in; `converged_only` leaves out the samples that are not `converged`.

        Raises:
            ValueError: an event was received before the last one.
        """
        count = len(batch.events)
        index, mids = np.empty(count, np.int64), np.empty(count, np.float64)
        features = np.empty((count, FEATURE_COUNT), np.float32)
        samples = 0
        for number, event in enumerate(events_of(batch)):
            if self.on_event(event) and (not converged_only or self.converged):
                index[samples], mids[samples], features[samples] = number, self.mid_e8, self.features
                samples += 1
        return Samples(index[:samples], mids[:samples], features[:samples])

    def on_event(self, event: MarketEvent) -> bool:
        """Take one event in; events come in the order they were received.

        Returns True where the event is a sample, so that `features` has been written anew.

        Raises:
            ValueError: the event was received before the last one.
        """
        now_ns = event.receive_ns
        if now_ns < self._now_ns:
            raise ValueError(
                f"event received at {now_ns}, before the last one at {self._now_ns}; sort events by time"
            )
        self._now_ns = now_ns
        if isinstance(event, BestQuote):
            counted = self._on_quote(event)
        elif isinstance(event, Trade):
            counted = self._on_trade(event)
        else:
            self._on_depth(event)
            return False
        if not (counted and self._book_ready and now_ns >= self._warm_at_ns):
            return False
        self._write(now_ns)
        return True

    def _on_quote(self, quote: BestQuote) -> bool:
        bid, bid_size = quote.bid_price_e8, quote.bid_size_e8
        ask, ask_size = quote.ask_price_e8, quote.ask_size_e8
        if not (0 < bid < ask and bid_size > 0 and ask_size > 0):
            self.events_ignored += 1
            return False
        now_ns = quote.receive_ns
        before = self._quote
        self._quote = quote
        twice_mid = bid + ask
        if before is None:
            self._begin(now_ns, twice_mid)
            return True
        flow = 0
        if bid >= before.bid_price_e8:
            flow += bid_size
        if bid <= before.bid_price_e8:
            flow -= before.bid_size_e8
        if ask <= before.ask_price_e8:
            flow -= ask_size
        if ask >= before.ask_price_e8:
            flow += before.ask_size_e8
        _, quotes, flows, gross, differences, sizes = self._quotes.newest
        difference, size = bid_size - ask_size, bid_size + ask_size
        self._quotes.append(
            (now_ns, quotes + 1, flows + flow, gross + abs(flow), differences + difference, sizes + size)
        )
        self._since_quote_ns = now_ns - before.receive_ns
        if self._trade is not None:
            self._since_trade_ns = now_ns - self._trade.receive_ns
            self._trade_aged = True
        _, twice_mid_before, squares, rises = self._mids.newest
        if twice_mid != twice_mid_before:
            move = twice_mid - twice_mid_before
            square = move * move
            self._mids.append((now_ns, twice_mid, squares + square, rises + square if move > 0 else rises))
            self._mid_move_sign = 1 if move > 0 else -1
            self._mid_move_ns = now_ns
            self.mid_e8 = twice_mid / 2
        return True

    def _begin(self, now_ns: int, twice_mid: int) -> None:
        """The first quote is where all windows begin; it is counted in none of them."""
        self._begun_ns = now_ns
        self._warm_at_ns = now_ns + self._warmup_ns
        self._mids = WindowLog(WINDOWS_NS, (now_ns, twice_mid, 0, 0))
        self._mid_move_ns = now_ns
        self.mid_e8 = twice_mid / 2

    def _on_trade(self, trade: Trade) -> bool:
        now_ns, price, size, sign = trade.receive_ns, trade.price_e8, trade.size_e8, trade.aggressor
        if price <= 0 or size <= 0:
            self.events_ignored += 1
            return False
        if self._quote is not None:
            self._since_quote_ns = now_ns - self._quote.receive_ns
        if self._trade is not None:
            self._since_trade_ns = now_ns - self._trade.receive_ns
            self._trade_aged = True
        self._trade = trade
        _, trades, signs, signed, volume, notional = self._trades.newest
        self._trades.append(
            (now_ns, trades + 1, signs + sign, signed + sign * size, volume + size, notional + price * size)
        )
        return True

    def _on_depth(self, event: DepthDiff | DepthSnapshot) -> None:
        try:
            if isinstance(event, DepthSnapshot):
                self._book.on_snapshot(event)
                if self.tick_size_e8 == 0:
                    self.tick_size_e8 = gcd(*[price for price, _ in event.bids + event.asks])
            else:
                self._book.on_diff(event)
        except BookError as error:
            self.book_breaks += 1
            self.book_break = error
        self._depth_ns = event.receive_ns
        self._book_ready = self._book.synchronised and self.tick_size_e8 > 0
        self._book_row = book_row(self._book)

    def _write(self, now_ns: int) -> None:
        quote, trade, tick = self._quote, self._trade, self.tick_size_e8
        assert quote is not None  # warm only after the first quote
        quotes, quote_edges = self._quotes.newest, self._quotes.at_edges(now_ns)
        trades, trade_edges = self._trades.newest, self._trades.at_edges(now_ns)
        mids, mid_edges = self._mids.newest, self._mids.at_edges(now_ns)
        twice_mid = mids[1]
        in_longest = quotes[1] - quote_edges[5][1]
        if in_longest:
            mean_size = (quotes[5] - quote_edges[5][5]) / in_longest
        else:
            mean_size = float(quote.bid_size_e8 + quote.ask_size_e8)
        sign, offset_ticks = 0, 0.0
        if trade is not None:
            sign, offset_ticks = trade.aggressor, (2 * trade.price_e8 - twice_mid) / (2 * tick)
        ages_ns = (self._since_quote_ns, self._since_trade_ns, now_ns - self._mid_move_ns)
        _pack_features(
            self._buffer,
            0,
            *touch_row(quote, tick, quotes, quote_edges, mean_size),
            *order_flow_row(quotes, quote_edges, mean_size),
            *trade_row(trades, trade_edges, twice_mid, sign, offset_ticks, mean_size),
            *return_row(twice_mid, mid_edges, self._mid_move_sign),
            *volatility_row(mids, mid_edges),
            *activity_row(quotes[1], quote_edges, trades[1], trade_edges, ages_ns),
            *self._book_row,
            age(now_ns - self._depth_ns),
        )
        np.maximum(self.features, LOWER_BOUNDS, out=self.features)
        np.minimum(self.features, UPPER_BOUNDS, out=self.features)
        self.samples += 1
