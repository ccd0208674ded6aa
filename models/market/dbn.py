"""Read Databento's DBN: `mbo` as a full order book with its touch and trades, `mbp-1` as touch and trades
alone.

Times are `ts_recv`. Prices must be whole multiples of 1e-8 and sizes count contracts. Events are numbered by
this reader, since DBN's own sequence numbers have holes where an instrument was not concerned. A record that
says the book may be bad (F_MAYBE_BAD_BOOK) becomes a gap: no sample until the feed sends the book anew.

While an exchange lets its book be crossed (before an opening) there is no touch and no depth; the first book
after that comes as a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sigd.models.market.errors import CaptureError
from sigd.models.market.events import (
    UNITS_PER_ONE,
    BestQuote,
    DepthDiff,
    DepthSnapshot,
    Level,
    MarketEvent,
    Trade,
)

INSTALL: Final = "pip install 'sigd[backfill]'"
_CHUNK_BYTES: Final = 1 << 20
_NANOS_A_UNIT: Final = 10
"""DBN's prices are in 1e-9."""
_AGGRESSORS: Final = {"A": -1, "B": 1}
"""The side of a trade is the aggressor's; N is a trade without one."""


def read_dbn(path: Path | str) -> Iterator[MarketEvent]:
    """The events of a DBN file, compressed with zstd or not.

    Raises:
        CaptureError: it is missing, cut short, of another schema or of several instruments, or a record does
        not
            fit what came before it.
        ImportError: databento-dbn or pyarrow is not installed.
    """
    path = Path(path)
    records = _records(path)
    metadata = next(records)
    schema = str(metadata.schema)
    if schema == "mbo":
        yield from _Orders(path.name).events(records)
    elif schema == "mbp-1":
        yield from _touches(path.name, records)
    else:
        raise CaptureError(
            path.name, 0, f"schema {schema}, expected mbo (a full book) or mbp-1 (the touch and trades)"
        )


def _records(path: Path) -> Iterator[Any]:
    """Metadata, then the records."""
    import databento_dbn
    import pyarrow

    decoder = databento_dbn.DBNDecoder()
    number = 0
    try:
        with path.open("rb") as file:
            compressed = file.read(4) == b"\x28\xb5\x2f\xfd"
        with pyarrow.input_stream(str(path), compression="zstd" if compressed else None) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                decoder.write(chunk)
                for record in decoder.decode():
                    yield record
                    number += 1
    except FileNotFoundError:
        raise CaptureError(str(path), 0, "No such file; expected a DBN file") from None
    except (OSError, databento_dbn.DBNError) as error:
        raise CaptureError(path.name, number, f"{error}; expected a DBN file, is it cut short?") from error
    if not number or decoder.buffer():
        raise CaptureError(path.name, number, "the file ends in a record: it was cut short, copy it again")


def _price_e8(source: str, number: int, price: int) -> int:
    if price % _NANOS_A_UNIT or price < 0:
        raise CaptureError(
            source, number, f"price {price} in 1e-9, expected one of at most 8 decimals and not below 0"
        )
    return price // _NANOS_A_UNIT


class _Instrument:
    """What all records of a file must have in common."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._id = 0
        self._now_ns = 0

    def check(self, number: int, record: Any) -> int:
        """The time of a record."""
        self._id = self._id or record.instrument_id
        if record.instrument_id != self._id:
            raise CaptureError(
                self._source,
                number,
                f"instrument {record.instrument_id} after {self._id}; expected one instrument a file",
            )
        receive_ns = int(record.ts_recv)
        if receive_ns < self._now_ns:
            raise CaptureError(
                self._source, number, f"ts_recv {receive_ns} is before the record above's, {self._now_ns}"
            )
        self._now_ns = receive_ns
        return receive_ns


def _trade(source: str, number: int, record: Any, receive_ns: int) -> Trade:
    return Trade(
        receive_ns,
        record.sequence,
        _price_e8(source, number, record.price),
        record.size * UNITS_PER_ONE,
        _AGGRESSORS.get(str(record.side), 0),
    )


def _touches(source: str, records: Iterator[Any]) -> Iterator[MarketEvent]:
    """Of mbp-1: a quote where the touch has changed, a trade for each trade."""
    import databento_dbn

    instrument = _Instrument(source)
    touch: tuple[int, ...] = ()
    for number, record in enumerate(records, 1):
        receive_ns = instrument.check(number, record)
        if str(record.action) == "T":
            yield _trade(source, number, record, receive_ns)
        level = record.levels[0]
        if databento_dbn.UNDEF_PRICE in (level.bid_px, level.ask_px):
            continue
        bid, ask = _price_e8(source, number, level.bid_px), _price_e8(source, number, level.ask_px)
        new = (bid, level.bid_sz * UNITS_PER_ONE, ask, level.ask_sz * UNITS_PER_ONE)
        if new != touch:
            touch = new
            yield BestQuote(receive_ns, number, *new)


class _Orders:
    """The orders of an instrument, and the levels that they make."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._orders: dict[int, tuple[str, int, int]] = {}  # side, price_e8, contracts
        self._levels: dict[str, dict[int, int]] = {"B": {}, "A": {}}
        self._changed: dict[str, set[int]] = {"B": set(), "A": set()}
        self._best: dict[str, int] = {"B": 0, "A": 0}
        self._touch: tuple[int, ...] = ()
        self._update = 0
        self._following = -1
        """The update that the next difference follows; -1 where the next message is a snapshot."""

    def events(self, records: Iterator[Any]) -> Iterator[MarketEvent]:
        """Records that the exchange sent together (up to F_LAST) change the book together."""
        import databento_dbn

        instrument = _Instrument(self._source)
        for number, record in enumerate(records, 1):
            receive_ns = instrument.check(number, record)
            flags = int(record.flags)
            action = str(record.action)
            if action == "T":
                yield _trade(self._source, number, record, receive_ns)
            elif action == "R":
                self._orders.clear()
                self._levels = {"B": {}, "A": {}}
                self._following = -1
            elif action in "ACM":
                self._apply(number, action, record)
            if flags & databento_dbn.F_MAYBE_BAD_BOOK:
                self._update += 1  # A message that is missing, for those who follow the numbers.
            if flags & databento_dbn.F_LAST:
                yield from self._changes(receive_ns)

    def _apply(self, number: int, action: str, record: Any) -> None:
        order = self._orders.get(record.order_id)
        if action != "A" and order is None:
            raise CaptureError(
                self._source,
                number,
                f"order {record.order_id} was never added: expected a file that begins with the book, as"
                " Databento's days do",
            )
        if order is not None:
            self._move(*order, sign=-1)
        if action == "C" and order is not None:
            left = order[2] - record.size
            new = (order[0], order[1], left) if left > 0 else None
        else:
            side = str(record.side)
            if side not in self._levels:
                raise CaptureError(self._source, number, f"an order of side {side}, expected A or B")
            new = (side, _price_e8(self._source, number, record.price), int(record.size))
        if new is None:
            del self._orders[record.order_id]
        else:
            self._orders[record.order_id] = new
            self._move(*new, sign=1)

    def _move(self, side: str, price_e8: int, size: int, *, sign: int) -> None:
        levels = self._levels[side]
        rest = levels.get(price_e8, 0) + sign * size
        if rest:
            levels[price_e8] = rest
        else:
            levels.pop(price_e8, None)
        self._changed[side].add(price_e8)

    def _changes(self, receive_ns: int) -> Iterator[MarketEvent]:
        changed = self._changed
        self._changed = {"B": set(), "A": set()}
        if not (changed["B"] or changed["A"]):
            return
        bids, asks = self._levels["B"], self._levels["A"]
        bid = self._best["B"] = self._best_of("B", changed["B"])
        ask = self._best["A"] = self._best_of("A", changed["A"])
        if bids and asks and bid >= ask:
            self._following = -1
            return
        self._update += 1
        if self._following < 0:
            yield DepthSnapshot(
                receive_ns,
                self._update,
                _sized(bids, sorted(bids, reverse=True)),
                _sized(asks, sorted(asks)),
            )
        else:
            yield DepthDiff(
                receive_ns,
                self._update - 1,
                self._update,
                _sized(bids, sorted(changed["B"], reverse=True)),
                _sized(asks, sorted(changed["A"])),
            )
        self._following = self._update
        if bids and asks:
            touch = (bid, bids[bid] * UNITS_PER_ONE, ask, asks[ask] * UNITS_PER_ONE)
            if touch != self._touch:
                self._touch = touch
                yield BestQuote(receive_ns, self._update, *touch)

    def _best_of(self, side: str, changed: set[int]) -> int:
        """The best price of a side after some of its prices have changed; 0 where it is empty."""
        levels = self._levels[side]
        better = max if side == "B" else min
        before = self._best[side]
        if before in levels:
            return better([before, *(price for price in changed if price in levels)])
        return better(levels) if levels else 0


def _sized(levels: dict[int, int], prices: list[int]) -> tuple[Level, ...]:
    return tuple((price, levels.get(price, 0) * UNITS_PER_ONE) for price in prices)
