"""tardis.dev's CSV files as market events: made files for each rule, real lines where there are some."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from sigd.models.market.errors import CaptureError
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, Trade
from sigd.models.market.tardis import read_tardis

ONE = 10**8
L2 = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount\n"
QUOTES = "exchange,symbol,timestamp,local_timestamp,ask_amount,ask_price,bid_price,bid_amount\n"
TRADES = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount\n"


def write(path: Path, *lines: str) -> Path:
    content = "".join(f"{line}\n" if not line.endswith("\n") else line for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_three_files_are_merged_by_local_time_with_depth_first(tmp_path: Path) -> None:
    paths = {
        "incremental_book_L2": write(
            tmp_path / "l2.csv.gz",
            L2,
            "x,BTC,1,10,true,ask,101,2",
            "x,BTC,1,10,true,bid,99,1",
            "x,BTC,1,10,true,bid,100,3",
            "x,BTC,1,12,false,bid,100,0",
            "x,BTC,1,12,false,ask,100.5,4",
            "x,BTC,1,13,false,bid,98,1",
        ),
        "quotes": write(tmp_path / "quotes.csv", QUOTES, "x,BTC,1,10,2,101,100,3", "x,BTC,1,12,4,100.5,99,1"),
        "trades": write(
            tmp_path / "trades.csv", TRADES, "x,BTC,1,11,id,sell,100,3", "x,BTC,1,12,,unknown,1,1"
        ),
    }
    assert list(read_tardis(paths)) == [
        DepthSnapshot(10_000, 1, ((100 * ONE, 3 * ONE), (99 * ONE, ONE)), ((101 * ONE, 2 * ONE),)),
        BestQuote(10_000, 0, 100 * ONE, 3 * ONE, 101 * ONE, 2 * ONE),
        Trade(11_000, 0, 100 * ONE, 3 * ONE, -1),
        DepthDiff(12_000, 1, 2, ((100 * ONE, 0),), ((10_050_000_000, 4 * ONE),)),
        BestQuote(12_000, 0, 99 * ONE, ONE, 10_050_000_000, 4 * ONE),
        Trade(12_000, 0, ONE, ONE, 0),
        DepthDiff(13_000, 2, 3, ((98 * ONE, ONE),), ()),
    ]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("a,b\n",), "made.csv:1: columns 'a,b', expected those of trades"),
        ((TRADES, "x,BTC,1,2,i,buy,1"), "made.csv:2: 7 fields, expected 8"),
        ((TRADES, "x,BTC,1,2,i,buy,1e5,1"), "made.csv:2: '1e5' is not a number"),
        ((TRADES, "x,BTC,1,2,i,bought,1,1"), "made.csv:2: 'bought' in"),
        ((TRADES, "x,BTC,1,2,i,buy,1,1", "x,BTC,1,1,i,buy,1,1"), "made.csv:3: local_timestamp 1 is before"),
        ((TRADES, "x,BTC,1,2,i,buy,1,1", "x,ETH,1,2,i,buy,1,1"), "expected one symbol in all files"),
    ],
)
def test_line_that_is_not_as_its_kind_is_refused(tmp_path: Path, lines: tuple[str, ...], reason: str) -> None:
    with pytest.raises(CaptureError) as raised:
        list(read_tardis({"trades": write(tmp_path / "made.csv", *lines)}))
    assert reason in str(raised.value)


def test_file_that_was_cut_short_or_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "quotes.csv.gz", QUOTES, *["x,BTC,1,10,2,101,100,3"] * 500)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(CaptureError, match="damaged, copy it again"):
        list(read_tardis({"quotes": path}))
    with pytest.raises(CaptureError, match="No such file"):
        list(read_tardis({"quotes": tmp_path / "none.csv"}))


def test_real_lines_are_read(data_dir: Path) -> None:
    kinds = {"incremental_book_L2": "incremental_book_L2", "quotes": "quotes", "trades": "trades"}
    found = {kind: min(data_dir.glob(f"**/*_{name}_*.csv"), default=None) for kind, name in kinds.items()}
    if None in found.values():
        pytest.skip(f"no lines of tardis under {data_dir}")
    for kind, path in found.items():
        assert path is not None
        assert list(read_tardis({kind: path})), kind
