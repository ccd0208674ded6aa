"""The synthetic market: seeded, bursty as stated, and consistent as a real feed is."""

from __future__ import annotations

from itertools import islice, takewhile

import numpy as np
import pytest

from sigd.bench.market.hawkes import CRYPTO_FUTURES, Burstiness, Kernel, arrival_statistics, arrival_times_ns
from sigd.bench.market.synthetic import TICK_E8, SyntheticMarket
from sigd.models.features import FeatureStream
from sigd.models.market.book import OrderBook
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, Trade

S = 1_000_000_000


def times(seed: int, duration_s: int, burstiness: Burstiness = CRYPTO_FUTURES) -> np.ndarray:
    return np.array(
        list(takewhile(lambda t: t < duration_s * S, arrival_times_ns(burstiness, seed))), np.int64
    )


def test_arrivals_are_the_same_for_the_same_seed_only() -> None:
    first, again, other = (list(islice(arrival_times_ns(CRYPTO_FUTURES, seed), 500)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first == sorted(first)


def test_burstiness_is_that_of_the_feed_it_imitates() -> None:
    statistics = arrival_statistics(times(seed=1, duration_s=120))
    mean_hz = CRYPTO_FUTURES.base_hz / (1 - CRYPTO_FUTURES.branching)
    assert mean_hz == pytest.approx(272)
    assert statistics.mean_hz == pytest.approx(mean_hz, rel=0.25)
    assert 2 < statistics.median_gap_us < 6
    assert statistics.most_in_1_ms > 60  # a Poisson process of this rate reaches 5 or so
    assert statistics.most_in_1_s > 700


def test_without_children_it_is_a_poisson_process() -> None:
    poisson = times(seed=3, duration_s=60, burstiness=Burstiness(500.0, (Kernel(0.0, 1.0),)))
    gaps = np.diff(poisson) / S
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 500, rel=0.05)


def test_a_process_that_would_explode_is_refused() -> None:
    with pytest.raises(ValueError, match="explode"):
        Burstiness(1.0, (Kernel(0.7, 1e-3), Kernel(0.3, 1.0)))


def test_statistics_of_times_that_can_be_counted_by_hand() -> None:
    statistics = arrival_statistics(np.array([0, 1000, 2000, 1_000_000, 2 * S], np.int64))
    assert statistics.most_in_1_ms == 3
    assert statistics.most_in_1_s == 4
    assert statistics.mean_hz == pytest.approx(2.0)


def test_market_is_consistent() -> None:
    """Depth messages chain, the book is never crossed, and its touch is that of the last quote before it."""
    book = OrderBook()
    quote = None
    kinds = {BestQuote: 0, Trade: 0, DepthDiff: 0, DepthSnapshot: 0}
    last_ns = 0
    for event in islice(SyntheticMarket(5).events(), 20_000):
        kinds[type(event)] += 1
        assert event.receive_ns >= last_ns
        last_ns = event.receive_ns
        if isinstance(event, DepthSnapshot):
            book.on_snapshot(event)
        elif isinstance(event, DepthDiff):
            book.on_diff(event)  # raises where it does not chain or crosses
        elif isinstance(event, BestQuote):
            quote = event
            assert event.ask_price_e8 - event.bid_price_e8 == TICK_E8
            assert event.bid_size_e8 > 0
            assert event.ask_size_e8 > 0
        else:
            assert event.size_e8 > 0
            assert event.aggressor in (-1, 1)
    assert quote is not None
    assert kinds[DepthSnapshot] == 1
    assert min(kinds[BestQuote], kinds[Trade], kinds[DepthDiff]) > 500


def test_market_gives_features_and_moves() -> None:
    stream = FeatureStream()
    mids = {stream.mid_e8 for event in islice(SyntheticMarket(5).events(), 8_000) if stream.on_event(event)}
    assert stream.samples > 1000
    assert stream.book_breaks == 0
    assert stream.events_ignored == 0
    assert len(mids) > 3


def test_market_is_the_same_for_the_same_seed_only() -> None:
    first, again, other = (list(islice(SyntheticMarket(seed).events(), 300)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
