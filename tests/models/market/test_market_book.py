"""The order book: rebuilt around a snapshot, checked link by link, and in agreement with the touch of real
captures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.models.market.book import DIFFS_KEPT_MAX, BookSide, OrderBook
from sigd.models.market.capture import read_capture
from sigd.models.market.errors import BookCrossed, BookError, BookGap
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, Level

SNAPSHOT = DepthSnapshot(0, 100, ((990, 5), (980, 6)), ((1000, 7), (1010, 8)))


def diff(previous: int, last: int, bids: tuple[Level, ...] = (), asks: tuple[Level, ...] = ()) -> DepthDiff:
    return DepthDiff(0, previous, last, bids, asks)


def test_a_snapshot_alone() -> None:
    assert not OrderBook().synchronised
    book = OrderBook()
    book.on_snapshot(SNAPSHOT)
    assert book.synchronised
    assert book.update_id == 100
    assert book.bids.best(5) == [(990, 5), (980, 6)]
    assert book.asks.best(1) == [(1000, 7)]


def test_kept_diffs_bridge_the_snapshot_and_older_ones_are_dropped() -> None:
    book = OrderBook()
    book.on_diff(diff(80, 95, bids=((991, 1),)))
    book.on_diff(diff(95, 105, bids=((992, 2),)))
    book.on_diff(diff(105, 110, asks=((1000, 0),)))
    book.on_snapshot(SNAPSHOT)
    assert book.update_id == 110
    assert book.bids.best(2) == [(992, 2), (990, 5)]
    assert book.asks.best(1) == [(1010, 8)]


def test_the_first_diff_after_a_snapshot_may_begin_before_it_and_no_later_one() -> None:
    book = OrderBook()
    book.on_snapshot(SNAPSHOT)
    book.on_diff(diff(90, 100, bids=((995, 1),)))  # ends where the book stands: says nothing new
    assert book.bids.best(1) == [(990, 5)]
    book.on_diff(diff(97, 103))
    book.on_diff(diff(103, 104))
    with pytest.raises(BookGap):
        book.on_diff(diff(103, 106))


@pytest.mark.parametrize("synchronised_by_diff", [False, True])
def test_a_missing_message_is_an_error_and_empties_the_book(synchronised_by_diff: bool) -> None:
    book = OrderBook()
    book.on_snapshot(SNAPSHOT)
    stood_at = 100
    if synchronised_by_diff:
        book.on_diff(diff(100, 101))
        stood_at = 101
    with pytest.raises(BookGap, match="messages between them are missing") as caught:
        book.on_diff(diff(102, 103))
    assert (caught.value.expected_update_id, caught.value.got_update_id) == (stood_at, 102)
    assert not book.synchronised
    assert (len(book.bids), len(book.asks)) == (0, 0)


def test_after_a_gap_a_newer_snapshot_brings_the_book_back_with_what_came_since() -> None:
    book = OrderBook()
    book.on_snapshot(SNAPSHOT)
    with pytest.raises(BookGap):
        book.on_diff(diff(110, 120, bids=((991, 4),)))
    book.on_diff(diff(120, 130, bids=((992, 3),)))
    book.on_snapshot(DepthSnapshot(0, 115, ((989, 1),), ((1001, 1),)))
    assert book.update_id == 130
    assert book.bids.best(3) == [(992, 3), (991, 4), (989, 1)]


def test_a_snapshot_too_old_for_the_kept_diffs_is_a_gap_and_a_newer_one_still_works() -> None:
    book = OrderBook()
    book.on_diff(diff(110, 120, bids=((991, 4),)))
    with pytest.raises(BookGap):
        book.on_snapshot(SNAPSHOT)
    assert not book.synchronised
    book.on_snapshot(DepthSnapshot(0, 112, ((989, 1),), ((1001, 1),)))
    assert book.update_id == 120
    assert book.bids.best(1) == [(991, 4)]


def test_a_snapshot_older_than_the_book_is_ignored() -> None:
    book = OrderBook()
    book.on_snapshot(SNAPSHOT)
    book.on_diff(diff(100, 101, bids=((991, 4),)))
    book.on_snapshot(SNAPSHOT)
    assert book.update_id == 101
    assert book.bids.best(1) == [(991, 4)]


def test_a_crossed_book_is_an_error() -> None:
    book = OrderBook()
    book.on_snapshot(SNAPSHOT)
    with pytest.raises(BookCrossed, match="is not below the best ask"):
        book.on_diff(diff(100, 101, bids=((1000, 1),)))
    assert not book.synchronised


def test_no_more_than_the_bound_is_kept_and_what_was_dropped_shows_as_a_gap() -> None:
    book = OrderBook()
    for update in range(DIFFS_KEPT_MAX + 10):
        book.on_diff(diff(update, update + 1))
    with pytest.raises(BookGap):
        book.on_snapshot(DepthSnapshot(0, 5, ((990, 5),), ((1000, 7),)))


@pytest.mark.parametrize("direction", [-1, 1])
@given(
    changes=st.lists(
        st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), max_size=8).map(tuple), max_size=12
    ),
    count=st.integers(0, 12),
    origin=st.integers(1, 30),
    distance=st.integers(0, 10),
)
def test_a_side_equals_a_plain_table(
    direction: int, changes: list[tuple[Level, ...]], count: int, origin: int, distance: int
) -> None:
    side = BookSide(direction)
    table: dict[int, int] = {}
    for levels in changes:
        side.apply(levels)
        table.update(levels)
    rest = sorted(
        ((price, size) for price, size in table.items() if size), key=lambda level: level[0] * direction
    )
    assert side.best(count) == rest[:count]
    assert side.best_price_e8() == (rest[0][0] if rest else 0)
    assert len(side) == len(rest)
    within = [size for price, size in rest if (price - origin) * direction <= distance]
    assert side.size_within_e8(distance, origin) == sum(within)


@pytest.mark.parametrize("capture", ["usdm_btcusdt", "usdm_ethusdt", "spot_btcusdt"])
def test_real_books_are_never_crossed_and_agree_with_the_quotes(capture_dir: Path, capture: str) -> None:
    """At each update id that a quote and the book share, best prices and sizes must be equal."""
    book = OrderBook()
    quotes: dict[int, BestQuote] = {}
    compared = 0
    for event in read_capture(min(capture_dir.glob(f"{capture}_*.gz"))):
        if isinstance(event, BestQuote):
            quotes[event.update_id] = event
        elif isinstance(event, DepthSnapshot):
            book.on_snapshot(event)
        elif isinstance(event, DepthDiff):
            book.on_diff(event)
            quote = quotes.get(book.update_id) if book.synchronised else None
            if quote is not None:
                compared += 1
                assert book.bids.best(1) == [(quote.bid_price_e8, quote.bid_size_e8)]
                assert book.asks.best(1) == [(quote.ask_price_e8, quote.ask_size_e8)]
    assert book.synchronised
    assert compared > 300


def test_without_the_kept_diffs_a_real_book_would_not_connect(capture_dir: Path) -> None:
    depth = [
        event
        for event in read_capture(min(capture_dir.glob("usdm_btcusdt_*.gz")))
        if isinstance(event, DepthDiff | DepthSnapshot)
    ]
    place = next(place for place, event in enumerate(depth) if isinstance(event, DepthSnapshot))
    snapshot = depth[place]
    assert isinstance(snapshot, DepthSnapshot)
    needed = [event for event in depth[:place] if event.last_update_id > snapshot.last_update_id]
    assert needed, "this capture would not need the diffs before its snapshot"
    book = OrderBook()
    book.on_snapshot(snapshot)
    following = depth[place + 1]
    assert isinstance(following, DepthDiff)
    with pytest.raises(BookError):
        book.on_diff(following)
