"""Small markets as captures on disk, and plans over them."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from sigd.bench.market.synthetic import SyntheticMarket
from sigd.models.market.events import BestQuote, DepthSnapshot, Level, MarketEvent, Trade

START_NS = 1_700_000_000_000_000_000


def decimal(units_e8: int) -> str:
    """An integer in units of 1e-8 as an exchange writes it."""
    return f"{units_e8 // 10**8}.{units_e8 % 10**8:08}"


def capture_line(event: MarketEvent, symbol: str) -> bytes:
    """One line of a capture, in the form of USD-M futures."""

    def levels(side: Sequence[Level]) -> list[tuple[str, str]]:
        return [(decimal(price), decimal(size)) for price, size in side]

    message: dict[str, object]
    if isinstance(event, DepthSnapshot):
        message = {
            "lastUpdateId": event.last_update_id,
            "bids": levels(event.bids),
            "asks": levels(event.asks),
        }
    else:
        data: dict[str, object]
        if isinstance(event, BestQuote):
            kind = "bookTicker"
            data = {
                "u": event.update_id,
                "b": decimal(event.bid_price_e8),
                "B": decimal(event.bid_size_e8),
                "a": decimal(event.ask_price_e8),
                "A": decimal(event.ask_size_e8),
            }
        elif isinstance(event, Trade):
            kind = "trade"
            data = {
                "t": event.trade_id,
                "p": decimal(event.price_e8),
                "q": decimal(event.size_e8),
                "m": event.aggressor < 0,
            }
        else:
            kind = "depth@0ms"
            data = {
                "U": event.previous_update_id + 1,
                "u": event.last_update_id,
                "pu": event.previous_update_id,
                "b": levels(event.bids),
                "a": levels(event.asks),
            }
        message = {"stream": f"{symbol}@{kind}", "data": data}
    return b"%d %b\n" % (event.receive_ns, msgspec.json.encode(message))


def synthetic_events(seed: int, count: int, start_ns: int = START_NS) -> Iterator[MarketEvent]:
    """The first events of a synthetic market, at times from `start_ns` on."""
    for event in islice(SyntheticMarket(seed).events(), count):
        yield msgspec.structs.replace(event, receive_ns=start_ns + event.receive_ns)


def write_capture(path: Path, events: Iterable[MarketEvent], symbol: str = "aaa") -> Path:
    """A capture of these events."""
    path.write_bytes(
        gzip.compress(b"".join(capture_line(event, symbol) for event in events), compresslevel=1)
    )
    return path


def write_plan(path: Path, symbols: Sequence[str], dates: Sequence[str], *settings: str) -> Path:
    """A plan over captures named SYMBOL_DATE.gz beside it."""
    lines = [
        *settings,
        "[[input]]",
        'path = "{symbol}_{date}.gz"',
        f"symbols = {msgspec.json.encode(list(symbols)).decode()}",
        "snapshot_levels = 1000",
        f"dates = {msgspec.json.encode(list(dates)).decode()}",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
