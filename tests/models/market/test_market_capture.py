"""Reading captures: both markets' messages, and errors that name the line and what was expected there."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.models.market.capture import read_capture, units_e8
from sigd.models.market.errors import CaptureError
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, MarketEvent, Trade

Parse = Callable[..., list[MarketEvent]]

FUTURES_QUOTE = (
    b'100 {"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":7,"s":"BTCUSDT","b":"61800.20","B":"2.507",'
    b'"a":"61800.30","A":"2.510","T":1,"E":2}}\n'
)
FUTURES_TRADE = (
    b'101 {"stream":"btcusdt@trade","data":{"e":"trade","E":1,"T":1,"s":"BTCUSDT","t":9,"p":"61800.30","q":"0.006",'
    b'"X":"MARKET","m":false}}\n'
)
FUTURES_DEPTH = (
    b'102 {"stream":"btcusdt@depth@0ms","data":{"e":"depthUpdate","E":1,"T":1,"s":"BTCUSDT","U":12,"u":15,"pu":10,'
    b'"b":[["61800.20","0.014"],["61496.50","0.000"]],"a":[]}}\n'
)
SNAPSHOT = b'103 {"lastUpdateId":15,"E":1,"T":1,"bids":[["61800.20","2.909"]],"asks":[["61800.30","1"]]}\n'
SPOT_QUOTE = (
    b'100 {"stream":"btcusdt@bookTicker","data":{"u":7,"s":"BTCUSDT","b":"61837.63000000","B":"3.78826000",'
    b'"a":"61837.64000000","A":"1.54698000"}}\n'
)
SPOT_TRADE = (
    b'101 {"stream":"btcusdt@trade","data":{"e":"trade","E":1,"s":"BTCUSDT","t":9,"p":"61837.63000000",'
    b'"q":"0.02000000","T":1,"m":true,"M":true}}\n'
)
SPOT_DEPTH = (
    b'102 {"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":12,"u":15,"b":[],'
    b'"a":[["61837.64000000","1.54698000"]]}}\n'
)


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    """The events of a capture of these lines; the file is called `the-file`."""

    def parse(*lines: bytes) -> list[MarketEvent]:
        path = tmp_path / "the-file"
        path.write_bytes(gzip.compress(b"".join(lines)))
        return list(read_capture(path))

    return parse


def test_reads_futures_messages(parse: Parse) -> None:
    events = parse(FUTURES_QUOTE, FUTURES_TRADE, FUTURES_DEPTH, SNAPSHOT)
    assert events == [
        BestQuote(100, 7, 6_180_020_000_000, 250_700_000, 6_180_030_000_000, 251_000_000),
        Trade(101, 9, 6_180_030_000_000, 600_000, 1),
        DepthDiff(102, 10, 15, ((6_180_020_000_000, 1_400_000), (6_149_650_000_000, 0)), ()),
        DepthSnapshot(103, 15, ((6_180_020_000_000, 290_900_000),), ((6_180_030_000_000, 100_000_000),)),
    ]


def test_reads_spot_messages_and_says_what_a_diff_follows(parse: Parse) -> None:
    events = parse(SPOT_QUOTE, SPOT_TRADE, SPOT_DEPTH)
    assert events == [
        BestQuote(100, 7, 6_183_763_000_000, 378_826_000, 6_183_764_000_000, 154_698_000),
        Trade(101, 9, 6_183_763_000_000, 2_000_000, -1),
        DepthDiff(102, 11, 15, (), ((6_183_764_000_000, 154_698_000),)),
    ]


def test_leaves_out_trades_that_the_book_did_not_make(parse: Parse) -> None:
    assert parse(FUTURES_TRADE.replace(b"MARKET", b"INSURANCE_FUND")) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"no time here\n", "expected '<receive time, Unix ns> <JSON>'"),
        (b'200 {"stream":"btcusdt@book\n', "Input data was truncated"),
        (b'200 {"asks":[]}\n', "expected a stream's message"),
        (FUTURES_QUOTE.replace(b"100 ", b"99 "), "receive time 99 is before the line above's, 100"),
        (FUTURES_TRADE.replace(b"btcusdt@", b"ethusdt@"), "expected one instrument a file"),
        (FUTURES_TRADE.replace(b"@trade", b"@kline_1m"), "expected bookTicker, depth or trade"),
        (FUTURES_TRADE.replace(b'"p":"61800.30",', b""), "missing required field `p`"),
        (FUTURES_TRADE.replace(b'"0.006"', b"0.006"), "Expected `str`, got `float`"),
        (FUTURES_TRADE.replace(b'"0.006"', b'"-0.006"'), "'-0.006' is not a number"),
        (FUTURES_TRADE.replace(b'"0.006"', b'"0.123456789"'), "at most 8 places"),
        (FUTURES_TRADE.replace(b'"0.006"', b'"1e3"'), "'1e3' is not a number"),
    ],
)
def test_a_malformed_line_is_named_with_what_was_expected(parse: Parse, line: bytes, said: str) -> None:
    with pytest.raises(CaptureError, match=r"^the-file:2: ") as caught:
        parse(FUTURES_QUOTE, line)
    assert said in str(caught.value)
    assert caught.value.line == 2


def test_reads_a_file_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "capture.gz"
    path.write_bytes(gzip.compress(FUTURES_QUOTE + FUTURES_TRADE + b"broken\n"))
    events = read_capture(path)
    assert isinstance(next(events), BestQuote)
    assert isinstance(next(events), Trade)
    with pytest.raises(CaptureError, match=r"^capture\.gz:3: "):
        next(events)


def test_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "capture.gz"
    with pytest.raises(CaptureError, match="No such file or directory; expected a gzip capture"):
        list(read_capture(path))
    with pytest.raises(CaptureError, match="Is a directory"):
        list(read_capture(tmp_path))
    path.write_bytes(FUTURES_QUOTE)
    with pytest.raises(CaptureError, match="not a gzip file"):
        list(read_capture(path))
    path.write_bytes(gzip.compress(FUTURES_QUOTE * 50)[:-12])
    with pytest.raises(CaptureError, match="cut short"):
        list(read_capture(path))


@given(whole=st.integers(0, 10**12), units=st.integers(0, 10**8 - 1), places=st.integers(0, 8))
def test_decimals_are_exact(whole: int, units: int, places: int) -> None:
    fraction = f"{units:08d}"[:places]
    text = f"{whole}.{fraction}" if places else str(whole)
    assert units_e8(text) == whole * 10**8 + int(fraction.ljust(8, "0"))


@pytest.mark.parametrize("text", ["", ".", "1.2.3", "-1", "+1", " 1", "1_000", "nan", "inf", "\u0661"])
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        units_e8(text)
