"""Read a capture: the raw websocket messages of one instrument, as a collector wrote them.

A capture is gzip, one message a line: `<local receive time, Unix ns> <JSON>`; times in microseconds,
milliseconds or seconds are recognised by their size, and blank lines are skipped. The JSON is either a
message of Binance's combined streams (`{"stream": "btcusdt@bookTicker", "data": {...}}` with the streams
bookTicker, depth and trade, spot or USD-M futures) or the answer of its REST depth endpoint (`lastUpdateId`,
`bids`, `asks`).

Futures diffs name the update they follow (`pu`); spot diffs name their own first update (`U`), which is one
more. Both become `previous_update_id`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec

from sigd.models.market.errors import BookError, BookGap, CaptureError
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, Level, MarketEvent, Trade
from sigd.models.market.faults import CaptureFaults, FaultKind, fault_lines
from sigd.models.market.gunzip import lines

_UNITS: Final = {10: ("s", 10**9), 13: ("ms", 10**6), 16: ("us", 10**3)}
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


class Watched(Protocol):
    """What sees the events and knows whether the book holds: a `FeatureStream`."""

    book_breaks: int
    book_break: BookError | None
    events_ignored: int


class CaptureReader:
    """Reads the events of one capture in the order they were received, as a stream.

    Trades that did not come from the order book (futures report insurance-fund and liquidation transfers with
    a `X` other than MARKET) are left out.

    Args:
        path: the capture.
        salvage: count what is torn or damaged, and go on behind it, where else CaptureError is raised; an
            event whose time goes back counts as received with the one before it.

    Attributes:
        faults: what is wrong with it, as far as it has been read.
        stamp_unit: what its times are in: "s", "ms", "us" or "ns", known from the first line on. Events have
            nanoseconds whatever it is.
    """

    def __init__(self, path: Path | str, *, salvage: bool = False) -> None:
        self.path = Path(path)
        self.faults = CaptureFaults()
        self.stamp_unit = "ns"
        self._salvage = salvage
        self._watched: Watched | None = None
        self._line = 0
        self._before_ns = 0

    def watch(self, stream: Watched) -> None:
        """The stream that is given every event as it comes: what it finds wrong is put down with the event's
        line."""
        self._watched = stream

    def summary(self) -> dict[str, object]:
        """For JSON: the unit of the stamps, the counts by kind, and the first faults of each kind."""
        return {
            "stamp_unit": self.stamp_unit,
            "capture_faults": self.faults.counts,
            "first_capture_faults": self.faults.first,
        }

    def shown(self) -> list[str]:
        """Lines for people; none where all is well."""
        shown = []
        if self.stamp_unit != "ns":
            shown.append(
                f"capture  its times are in {self.stamp_unit}: nothing shorter can be told from them"
            )
        return shown + fault_lines(self.faults.counts, self.faults.first)

    def __iter__(self) -> Iterator[MarketEvent]:
        """
        Raises:
            CaptureError: the file is missing or no gzip file; without `salvage`, too, it is cut short, or a
                line is not as the module says; with the line number and what was expected.
        """
        try:
            with self.path.open("rb") as file:
                yield from self._events(lines(file, self._on_damage), self.path.name)
        except OSError as error:
            raise CaptureError(str(self.path), 0, f"{error.strerror}; expected a gzip capture") from error

    def _on_damage(self, problem: str) -> None:
        if not self._salvage or not self._line:
            raise CaptureError(self.path.name, 0, problem, salvageable=self._line > 0)
        self.faults.add("damaged file", self._line, self._before_ns, problem)

    def _events(self, lines: Iterable[bytes], source: str) -> Iterator[MarketEvent]:
        symbol = ""
        unit_ns = 0
        faults = self.faults
        for number, line in enumerate(lines, start=1):
            self._line = number
            stamp, _, text = line.partition(b" ")
            try:
                if not stamp.isdigit():
                    if not line.strip():
                        continue
                    raise ValueError("expected '<receive time, Unix ns> <JSON>'")
                if not unit_ns:
                    self.stamp_unit, unit_ns = _unit_of(int(stamp))
                receive_ns = int(stamp) * unit_ns
                message = _decode_message(text)
                if message.stream:
                    line_symbol, _, stream = message.stream.partition("@")
                    symbol = symbol or line_symbol
                    if line_symbol != symbol:
                        raise ValueError(
                            f"belongs to {line_symbol!r}, the lines above to {symbol!r}; expected one"
                            " instrument a"
                            " file"
                        )
                if receive_ns < self._before_ns:
                    problem = f"receive time {receive_ns} is before the line above's, {self._before_ns}"
                    if not self._salvage:
                        raise ValueError(problem)
                    faults.add("clock back", number, receive_ns, problem)
                    receive_ns = self._before_ns
                event = (
                    _event(receive_ns, stream, message.data)
                    if message.stream
                    else _snapshot(receive_ns, message)
                )
            except (ValueError, msgspec.DecodeError) as error:
                problem = f"{error}; the line begins {_beginning(line)}"
                if not self._salvage:
                    raise CaptureError(source, number, problem, salvageable=True) from error
                faults.add("torn line", number, self._before_ns, problem)
                continue
            self._before_ns = receive_ns
            if event is None:
                continue
            faults.look(event, number)
            if self._watched is None:
                yield event
                continue
            breaks, ignored = self._watched.book_breaks, self._watched.events_ignored
            yield event
            if self._watched.book_breaks != breaks:
                kind: FaultKind = "gap" if isinstance(self._watched.book_break, BookGap) else "crossed book"
                faults.add(kind, number, receive_ns, str(self._watched.book_break))
            if self._watched.events_ignored != ignored:
                faults.add("impossible event", number, receive_ns, f"left out: {_beginning(line)}")


def read_capture(path: Path | str) -> Iterator[MarketEvent]:
    """The events of a capture; see `CaptureReader`. Raises CaptureError as that does without `salvage`."""
    return iter(CaptureReader(path))


def _unit_of(stamp: int) -> tuple[str, int]:
    """What a stamp is in, and nanoseconds of one: a time of this century has 10 digits in seconds, 13 in ms,
    and so on."""
    return _UNITS.get(len(str(stamp)), ("ns", 1))


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
