"""Databento's DBN as market events. Made files for each rule, a real day where there is one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sigd.models.features import FeatureStream
from sigd.models.market.dbn import read_dbn
from sigd.models.market.errors import CaptureError
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, MarketEvent, Trade

dbn = pytest.importorskip("databento_dbn", reason="needs databento-dbn: pip install 'sigd[backfill]'")

ONE = 10**8
LAST, SNAPSHOT, BAD_BOOK = 128, 32, 4


def write(path: Path, schema: str, records: list[Any]) -> Path:
    metadata = dbn.Metadata(
        dataset="GLBX.MDP3",
        start=0,
        stype_in=None,
        stype_out=dbn.SType.INSTRUMENT_ID,
        schema=dbn.Schema(schema),
    )
    path.write_bytes(bytes(metadata.encode()) + b"".join(bytes(record) for record in records))
    return path


def mbo(order: int, action: str, side: str, price: float, size: int, flags: int = LAST, **other: int) -> Any:
    return dbn.MBOMsg(
        publisher_id=1,
        instrument_id=other.get("instrument", 7),
        ts_event=1,
        order_id=order,
        price=int(price * 10**9),
        size=size,
        channel_id=0,
        action=dbn.Action(action),
        side=dbn.Side(side),
        ts_recv=other.get("at", 1_000 + order),
        ts_in_delta=0,
        sequence=order,
        flags=flags,
    )


BOOK = [
    mbo(1, "A", "B", 99.5, 3, SNAPSHOT),
    mbo(2, "A", "B", 99.5, 1, SNAPSHOT),
    mbo(3, "A", "A", 100.5, 2, SNAPSHOT | LAST),
]


def events_of(tmp_path: Path, *records: Any) -> list[MarketEvent]:
    return list(read_dbn(write(tmp_path / "made.dbn", "mbo", [*BOOK, *records])))


def test_book_that_a_day_begins_with_is_a_snapshot(tmp_path: Path) -> None:
    assert events_of(tmp_path) == [
        DepthSnapshot(1_003, 1, ((9_950_000_000, 4 * ONE),), ((10_050_000_000, 2 * ONE),)),
        BestQuote(1_003, 1, 9_950_000_000, 4 * ONE, 10_050_000_000, 2 * ONE),
    ]


def test_orders_change_levels_and_the_touch(tmp_path: Path) -> None:
    events = events_of(
        tmp_path,
        mbo(10, "A", "B", 99.75, 5),
        mbo(10, "M", "B", 99.0, 5, at=1_011),
        mbo(2, "C", "B", 99.5, 1, at=1_012),
    )
    assert events[2:] == [
        DepthDiff(1_010, 1, 2, ((9_975_000_000, 5 * ONE),), ()),
        BestQuote(1_010, 2, 9_975_000_000, 5 * ONE, 10_050_000_000, 2 * ONE),
        DepthDiff(1_011, 2, 3, ((9_975_000_000, 0), (9_900_000_000, 5 * ONE)), ()),
        BestQuote(1_011, 3, 9_950_000_000, 4 * ONE, 10_050_000_000, 2 * ONE),
        DepthDiff(1_012, 3, 4, ((9_950_000_000, 3 * ONE),), ()),
        BestQuote(1_012, 4, 9_950_000_000, 3 * ONE, 10_050_000_000, 2 * ONE),
    ]


def test_trade_with_its_fills_changes_the_book_once(tmp_path: Path) -> None:
    events = events_of(
        tmp_path,
        mbo(0, "T", "B", 100.5, 1, 0, at=1_020),
        mbo(3, "F", "A", 100.5, 1, 0, at=1_020),
        mbo(3, "C", "A", 100.5, 1, at=1_020),
    )
    assert events[2:] == [
        Trade(1_020, 0, 10_050_000_000, ONE, 1),
        DepthDiff(1_020, 1, 2, (), ((10_050_000_000, ONE),)),
        BestQuote(1_020, 2, 9_950_000_000, 4 * ONE, 10_050_000_000, ONE),
    ]


def test_bad_book_is_a_gap_until_the_book_comes_anew(tmp_path: Path) -> None:
    events = events_of(
        tmp_path,
        mbo(10, "A", "B", 99.0, 1, LAST | BAD_BOOK),
        mbo(0, "R", "N", 0, 0, 0, at=1_011),
        mbo(20, "A", "B", 98.0, 1, SNAPSHOT),
        mbo(21, "A", "A", 101.0, 1, SNAPSHOT | LAST),
    )
    stream = FeatureStream(warmup_ns=0)
    for event in events:
        stream.on_event(event)
    assert stream.book_breaks == 1
    assert isinstance(events[-2], DepthSnapshot)
    assert stream.warm


def test_crossed_book_before_an_opening_gives_no_touch(tmp_path: Path) -> None:
    events = events_of(tmp_path, mbo(10, "A", "B", 101.0, 1), mbo(10, "C", "B", 101.0, 1, at=1_011))
    assert [type(event) for event in events] == [DepthSnapshot, BestQuote, DepthSnapshot]


def test_mbp_1_gives_the_touch_and_trades(tmp_path: Path) -> None:
    def record(action: str, size: int, at: int) -> Any:
        return dbn.MBP1Msg(
            publisher_id=1,
            instrument_id=7,
            ts_event=1,
            price=99 * 10**9,
            size=1,
            action=dbn.Action(action),
            side=dbn.Side("A"),
            depth=0,
            ts_recv=at,
            sequence=5,
            levels=dbn.BidAskPair(99 * 10**9, 100 * 10**9, size, 2, 1, 1),
            flags=LAST,
        )

    path = write(tmp_path / "made.dbn", "mbp-1", [record("A", 3, 10), record("T", 3, 11), record("C", 2, 12)])
    assert list(read_dbn(path)) == [
        BestQuote(10, 1, 99 * ONE, 3 * ONE, 100 * ONE, 2 * ONE),
        Trade(11, 5, 99 * ONE, ONE, -1),
        BestQuote(12, 3, 99 * ONE, 2 * ONE, 100 * ONE, 2 * ONE),
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (mbo(99, "C", "B", 99.5, 1), "order 99 was never added"),
        (mbo(10, "A", "B", 1.000000001, 1), "expected one of at most 8 decimals"),
        (mbo(10, "A", "B", -1, 1), "not below 0"),
        (mbo(10, "A", "B", 99.5, 1, instrument=8), "one instrument a file"),
        (mbo(10, "A", "B", 99.5, 1, at=1), "is before the record above's"),
        (mbo(10, "A", "N", 99.5, 1), "side N"),
    ],
)
def test_record_that_cannot_be_meant_is_refused(tmp_path: Path, record: Any, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        events_of(tmp_path, record)


def test_other_schema_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="schema trades, expected mbo"):
        list(read_dbn(write(tmp_path / "trades.dbn", "trades", [])))
    with pytest.raises(CaptureError, match="No such file"):
        list(read_dbn(tmp_path / "missing.dbn"))
    (tmp_path / "noise.dbn").write_bytes(b"no dbn at all")
    with pytest.raises(CaptureError, match="expected a DBN file"):
        list(read_dbn(tmp_path / "noise.dbn"))
    whole = write(tmp_path / "cut.dbn", "mbo", BOOK)
    whole.write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(CaptureError, match="cut short"):
        list(read_dbn(whole))


@pytest.mark.slow
def test_real_day_has_an_unbroken_book_whose_touch_agrees(data_dir: Path) -> None:
    days = sorted(data_dir.glob("**/*20231225*.mbo.dbn.zst"))
    if not days:
        pytest.skip(f"no day of DBN under {data_dir}")
    events = list(read_dbn(days[0]))
    stream = FeatureStream()
    assert sum(map(stream.on_event, events)) > 20_000
    assert (stream.book_breaks, stream.events_ignored) == (0, 0)
    assert all(one.receive_ns <= other.receive_ns for one, other in pairwise(events))
