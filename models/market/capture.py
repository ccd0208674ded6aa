"""Read a capture: the raw websocket messages of one instrument, as a collector wrote them.

A capture is gzip, one message a line: `<local receive time, Unix ns> <JSON>`. The JSON is either a message of
Binance's combined streams (`{"stream": "btcusdt@bookTicker", "data": {...}}` with the streams bookTicker,
depth and trade, spot or USD-M futures) or the answer of its REST depth endpoint (`lastUpdateId`, `bids`,
`asks`).

Futures diffs name the update they follow (`pu`); spot diffs name their own first update (`U`), which is one
more. Both become `previous_update_id`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from sigd.models.market.errors import CaptureError
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, Level, MarketEvent, Trade

_DECIMALS = 8
_POWERS_OF_TEN: tuple[int, ...] = tuple(10**power for power in range(_DECIMALS + 1))


class _Message(msgspec.Struct):
    """Either shape of line: a stream's message or a depth snapshot."""

    stream: str = ""
    data: msgspec.Raw = msgspec.Raw()
    last_update_id: int = msgspec.field(name="lastUpdateId", default=-1)
    bids: list[tuple[str, str]] = []
    asks: list[tuple[str, str]] = []


class _BookTicker(msgspec.Struct):
    u: int
    b: str
    B: str
    a: str
    A: str


class _DepthUpdate(msgspec.Struct):
    U: int
    u: int
    b: list[tuple[str, str]]
    a: list[tuple[str, str]]
    pu: int | None = None


class _TradeReport(msgspec.Struct):
    t: int
    p: str
    q: str
    m: bool
    X: str = "MARKET"


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_book_ticker = msgspec.json.Decoder(_BookTicker).decode
_decode_depth = msgspec.json.Decoder(_DepthUpdate).decode
_decode_trade = msgspec.json.Decoder(_TradeReport).decode


def read_capture(path: Path | str) -> Iterator[MarketEvent]:
    """The events of a capture in the order they were received, read as a stream.

    Trades that did not come from the order book (futures report insurance-fund and liquidation transfers with
    a `X` other than MARKET) are left out.

    Raises:
        CaptureError: the file is missing, is not gzip or is cut short, or a line is not as the module says;
            with the line number and what was expected.
    """
    path = Path(path)
    try:
        with gzip.open(path) as lines:
            yield from parse_lines(lines, path.name)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CaptureError(path.name, 0, f"not a gzip file ({error}); expected a gzip capture") from error
    except EOFError as error:
        raise CaptureError(
            path.name, 0, "the gzip stream ends too soon: the file was cut short, copy it again"
        ) from error
    except OSError as error:
        raise CaptureError(str(path), 0, f"{error.strerror}; expected a gzip capture") from error


def parse_lines(lines: Iterable[bytes], source: str = "<lines>") -> Iterator[MarketEvent]:
    """The events of the lines of a capture; `source` names them in errors.

    Raises:
        CaptureError: a line is malformed, goes back in time or belongs to another instrument.
    """
    symbol = ""
    before_ns = 0
    for number, line in enumerate(lines, start=1):
        stamp, _, text = line.partition(b" ")
        try:
            if not stamp.isdigit():
                raise ValueError("expected '<receive time, Unix ns> <JSON>'")
            receive_ns = int(stamp)
            if receive_ns < before_ns:
                raise ValueError(f"receive time {receive_ns} is before the line above's, {before_ns}")
            message = _decode_message(text)
            if message.stream:
                line_symbol, _, stream = message.stream.partition("@")
                symbol = symbol or line_symbol
                if line_symbol != symbol:
                    raise ValueError(
                        f"belongs to {line_symbol!r}, the lines above to {symbol!r}; expected one instrument"
                        " a file"
                    )
                event = _event(receive_ns, stream, message.data)
            else:
                event = _snapshot(receive_ns, message)
        except (ValueError, msgspec.DecodeError) as error:
            raise CaptureError(source, number, f"{error}; the line begins {_beginning(line)}") from error
        before_ns = receive_ns
        if event is not None:
            yield event


def _event(receive_ns: int, stream: str, data: msgspec.Raw) -> MarketEvent | None:
    kind = stream.partition("@")[0]
    if kind == "bookTicker":
        quote = _decode_book_ticker(data)
        return BestQuote(
            receive_ns, quote.u, units_e8(quote.b), units_e8(quote.B), units_e8(quote.a), units_e8(quote.A)
        )
    if kind == "trade":
        trade = _decode_trade(data)
        if trade.X != "MARKET":
            return None
        return Trade(receive_ns, trade.t, units_e8(trade.p), units_e8(trade.q), -1 if trade.m else 1)
    if kind == "depth":
        depth = _decode_depth(data)
        previous = depth.U - 1 if depth.pu is None else depth.pu
        return DepthDiff(receive_ns, previous, depth.u, _levels(depth.b), _levels(depth.a))
    raise ValueError(f"stream {stream!r} is unknown; expected bookTicker, depth or trade")


def _snapshot(receive_ns: int, message: _Message) -> DepthSnapshot:
    if message.last_update_id < 0:
        raise ValueError(
            "expected a stream's message ('stream', 'data') or a depth snapshot ('lastUpdateId')"
        )
    return DepthSnapshot(receive_ns, message.last_update_id, _levels(message.bids), _levels(message.asks))


def _levels(pairs: list[tuple[str, str]]) -> tuple[Level, ...]:
    return tuple([(units_e8(price), units_e8(size)) for price, size in pairs])


def units_e8(decimal: str) -> int:
    """A decimal string as an exact integer in units of 1e-8.

    >>> units_e8("61800.20")
    6180020000000

    Raises:
        ValueError: not a plain non-negative decimal, or finer than 1e-8.
    """
    whole, _, fraction = decimal.partition(".")
    digits = whole + fraction
    if len(fraction) > _DECIMALS or not (digits.isascii() and digits.isdigit()):
        raise ValueError(
            f"{decimal!r} is not a number; expected a decimal of at most {_DECIMALS} places, as '0.05'"
        )
    return int(digits) * _POWERS_OF_TEN[_DECIMALS - len(fraction)]


def _beginning(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", "replace"))
