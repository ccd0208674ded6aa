"""Events as columns and in Parquet: what goes in comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.models.market.batch import batches_of, events_of
from sigd.models.market.errors import CaptureError
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, MarketEvent, Trade
from sigd.models.market.parquet import read_about, read_batches, write_events

arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'sigd[parquet]'")
parquet = pytest.importorskip("pyarrow.parquet")

NUMBER = st.integers(-(2**63), 2**63 - 1)
TIME = st.integers(0, 2**63 - 1)
LEVELS = st.lists(st.tuples(NUMBER, NUMBER), max_size=4).map(tuple)
EVENT = st.one_of(
    st.builds(BestQuote, TIME, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER),
    st.builds(Trade, TIME, NUMBER, NUMBER, NUMBER, st.sampled_from((-1, 0, 1))),
    st.builds(DepthDiff, TIME, NUMBER, NUMBER, LEVELS, LEVELS),
    st.builds(DepthSnapshot, TIME, NUMBER, LEVELS, LEVELS),
)


@given(st.lists(EVENT, max_size=30), st.integers(1, 12))
def test_batches_hold_the_events(events: list[MarketEvent], events_max: int) -> None:
    batches = list(batches_of(events, events_max))
    assert all(len(batch.events) <= events_max for batch in batches)
    assert [event for batch in batches for event in events_of(batch)] == events


@given(events=st.lists(EVENT, min_size=1, max_size=30))
def test_parquet_holds_the_events(
    tmp_path_factory: pytest.TempPathFactory, events: list[MarketEvent]
) -> None:
    path = tmp_path_factory.getbasetemp() / "events.parquet"
    write_events(path, batches_of(events, 7), {b"key": b"value"})
    assert [event for batch in read_batches(path) for event in events_of(batch)] == events
    assert read_about(path)[b"key"] == b"value"


def test_number_beyond_64_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        list(batches_of([Trade(1, 1, 2**63, 1, 1)]))


def changed(table: object, name: str, values: object) -> object:
    at = table.schema.get_field_index(name)  # type: ignore[attr-defined]
    return table.set_column(at, name, values)  # type: ignore[attr-defined]


def test_other_columns_and_impossible_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    write_events(path, batches_of([DepthSnapshot(1, 1, ((5, 1),), ((6, 1),))]), {})
    table = parquet.read_table(path)
    for harmed, reason in (
        (table.drop_columns(["aggressor"]), "column aggressor is missing, expected int8"),
        (changed(table, "id", arrow.array(["one"])), "column id is string, expected int64"),
        (changed(table, "kind", arrow.array([9], arrow.int8())), "kind 9"),
        (changed(table, "bids", arrow.array([3], arrow.int32())), "more bids than levels"),
        (changed(table, "id", arrow.array([None], arrow.int64())), "column id has nulls"),
        (changed(table, "levels", arrow.array([[1]], arrow.list_(arrow.int64()))), "an odd length"),
    ):
        parquet.write_table(harmed, path)
        with pytest.raises(CaptureError, match=reason):
            list(read_batches(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CaptureError, match="expected a Parquet file of events"):
        list(read_batches(path))
    with pytest.raises(CaptureError, match="No such file"):
        list(read_batches(tmp_path / "none.parquet"))
