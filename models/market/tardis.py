"""Read tardis.dev's CSV files: `incremental_book_L2`, `quotes` and `trades` of one symbol, merged.

Times are `local_timestamp`, in microseconds. Events of one time come in this order: depth, quotes, trades; in
a live feed it may have been another, so a history read from here is its own reference. The files have no
update numbers: messages that are missing show only where the collector took the book anew, which is a
snapshot here too.

Prices and amounts are plain decimals of at most 8 places.
"""

from __future__ import annotations

import csv
import gzip
import heapq
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sigd.models.market.capture import units_e8
from sigd.models.market.errors import CaptureError
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, Level, MarketEvent, Trade

KINDS: Final = ("incremental_book_L2", "quotes", "trades")
_COMMON: Final = ("exchange", "symbol", "timestamp", "local_timestamp")
_COLUMNS: Final = {
    "incremental_book_L2": (*_COMMON, "is_snapshot", "side", "price", "amount"),
    "quotes": (*_COMMON, "ask_amount", "ask_price", "bid_price", "bid_amount"),
    "trades": (*_COMMON, "id", "side", "price", "amount"),
}
_NS_A_US: Final = 1_000
_AGGRESSORS: Final = {"buy": 1, "sell": -1, "unknown": 0}

_Row = tuple[int, list[str]]


def read_tardis(paths: dict[str, Path]) -> Iterator[MarketEvent]:
    """The events of the files, by their kind (see KINDS), gzip or not; a kind may be left out.

    Raises:
        CaptureError: a file is missing or cut short, has other columns or other symbols, or a row is not as
        it says.
    """
    readers = {"incremental_book_L2": _depth, "quotes": _quotes, "trades": _trades}
    symbols: set[str] = set()
    streams = [readers[kind](paths[kind], symbols) for kind in KINDS if kind in paths]
    # heapq.merge keeps the order of its streams where times are equal.
    return heapq.merge(*streams, key=lambda event: event.receive_ns)


def _rows(path: Path, kind: str, symbols: set[str]) -> Iterator[_Row]:
    """Number of the line and its fields."""
    number = 0
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", newline="") if is_gzip else path.open(newline="") as lines:
            reader = csv.reader(lines)
            head = next(reader, [])
            if tuple(head) != _COLUMNS[kind]:
                raise CaptureError(
                    path.name, 1, f"columns {','.join(head)!r}, expected those of {kind}: {_COLUMNS[kind]}"
                )
            for number, fields in enumerate(reader, 2):
                if len(fields) != len(head):
                    raise CaptureError(path.name, number, f"{len(fields)} fields, expected {len(head)}")
                symbols.add(fields[1])
                if len(symbols) > 1:
                    raise CaptureError(
                        path.name, number, f"symbols {sorted(symbols)}; expected one symbol in all files"
                    )
                yield number, fields
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise CaptureError(path.name, number, f"{error}: the file is damaged, copy it again") from error
    except OSError as error:
        raise CaptureError(str(path), 0, f"{error.strerror}; expected a CSV file of {kind}") from error


def _checked(
    path: Path, rows: Iterator[_Row], make: Callable[[int, list[str]], MarketEvent]
) -> Iterator[MarketEvent]:
    """One event a row."""
    before_ns = 0
    for number, fields in rows:
        try:
            event = make(int(fields[3]) * _NS_A_US, fields)
        except (ValueError, KeyError) as error:
            raise CaptureError(path.name, number, f"{error} in {','.join(fields)!r}") from error
        if event.receive_ns < before_ns:
            raise CaptureError(path.name, number, f"local_timestamp {fields[3]} is before the line above's")
        before_ns = event.receive_ns
        yield event


def _quotes(path: Path, symbols: set[str]) -> Iterator[MarketEvent]:
    def make(receive_ns: int, fields: list[str]) -> MarketEvent:
        ask_size, ask, bid, bid_size = (units_e8(text or "0") for text in fields[4:])
        return BestQuote(receive_ns, 0, bid, bid_size, ask, ask_size)

    return _checked(path, _rows(path, "quotes", symbols), make)


def _trades(path: Path, symbols: set[str]) -> Iterator[MarketEvent]:
    def make(receive_ns: int, fields: list[str]) -> MarketEvent:
        return Trade(receive_ns, 0, units_e8(fields[6]), units_e8(fields[7]), _AGGRESSORS[fields[5]])

    return _checked(path, _rows(path, "trades", symbols), make)


def _depth(path: Path, symbols: set[str]) -> Iterator[MarketEvent]:
    """Rows of one local time are one message; a snapshot begins where rows turn into ones of a snapshot."""
    update = 0
    group: tuple[int, bool] | None = None
    sides: dict[str, list[Level]] = {"bid": [], "ask": []}
    for number, fields in _rows(path, "incremental_book_L2", symbols):
        try:
            receive_ns = int(fields[3]) * _NS_A_US
            is_snapshot = {"true": True, "false": False}[fields[4]]
            side, level = sides[fields[5]], (units_e8(fields[6]), units_e8(fields[7]))
        except (ValueError, KeyError) as error:
            raise CaptureError(path.name, number, f"{error} in {','.join(fields)!r}") from error
        if group is not None and receive_ns < group[0]:
            raise CaptureError(path.name, number, f"local_timestamp {fields[3]} is before the line above's")
        if group != (receive_ns, is_snapshot):
            if group is not None:
                update += 1
                yield _message(group, update, sides)
                for levels in sides.values():
                    levels.clear()
            group = (receive_ns, is_snapshot)
        side.append(level)
    if group is not None:
        yield _message(group, update + 1, sides)


def _message(group: tuple[int, bool], update: int, sides: dict[str, list[Level]]) -> MarketEvent:
    receive_ns, is_snapshot = group
    if is_snapshot:
        bids, asks = sorted(sides["bid"], reverse=True), sorted(sides["ask"])
        return DepthSnapshot(receive_ns, update, tuple(bids), tuple(asks))
    return DepthDiff(receive_ns, update - 1, update, tuple(sides["bid"]), tuple(sides["ask"]))
