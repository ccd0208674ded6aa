"""The feature stream against a recomputation from scratch, and the properties that models rely on.

The recomputation keeps every event and works each feature out anew from the definitions in docs/features.md,
the slow and obvious way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigd.models.features import FEATURE_COUNT, FEATURE_NAMES, PythonFeatureStream
from sigd.models.features.catalogue import FEATURES, LOWER_BOUNDS, MIRROR, UPPER_BOUNDS, WINDOWS
from sigd.models.features.document import document
from sigd.models.market.capture import read_capture
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, Level, MarketEvent, Trade

TICK = 1_000_000
MIDDLE = 612_345  # in ticks; 1 and 5 bps of it fall between the half ticks that levels can lie at
MS = 1_000_000
GAPS_NS = (0, 0, 3_500, 800_000, 9 * MS, 10 * MS, 41 * MS, 700 * MS, 2_900 * MS, 7_000 * MS)

Float32Array = npt.NDArray[np.float32]


def market(seed: int, events: int, gaps_ns: Sequence[int] = GAPS_NS) -> list[MarketEvent]:
    """A random market: a snapshot, then quotes, trades and diffs whose book is never crossed."""
    draw = random.Random(seed)
    bid = MIDDLE - 1
    made: list[MarketEvent] = [
        DepthSnapshot(
            5,
            1,
            tuple(((MIDDLE - 30 - step) * TICK, draw.randint(1, 10**10)) for step in range(0, 400, 7)),
            tuple(((MIDDLE + 30 + step) * TICK, draw.randint(1, 10**10)) for step in range(0, 400, 5)),
        )
    ]
    now_ns, depth_update = 5, 1
    for number in range(events):
        now_ns += draw.choice(gaps_ns)
        kind = draw.random()
        if number == 0 or kind < 0.6:
            bid = min(max(bid + draw.choice((-3, -1, 0, 0, 0, 0, 1, 3)), MIDDLE - 20), MIDDLE + 19)
            spread = draw.choice((1, 1, 1, 2, 9))
            sizes = draw.randint(1, 10**10), draw.choice((1, draw.randint(1, 10**12)))
            made.append(BestQuote(now_ns, number, bid * TICK, sizes[0], (bid + spread) * TICK, sizes[1]))
        elif kind < 0.85:
            price = (bid + draw.randint(-2, 3)) * TICK
            made.append(Trade(now_ns, number, price, draw.randint(1, 10**11), draw.choice((-1, 1))))
        else:
            bids = _changes(draw, -1)
            made.append(DepthDiff(now_ns, depth_update, depth_update + 3, bids, _changes(draw, 1)))
            depth_update += 3
    return made


def _changes(draw: random.Random, direction: int) -> tuple[Level, ...]:
    prices = [(MIDDLE + direction * draw.randint(30, 500)) * TICK for _ in range(draw.randint(0, 5))]
    return tuple((price, draw.choice((0, draw.randint(1, 10**10)))) for price in prices)


def samples(events: Sequence[MarketEvent], warmup_ns: int = 0) -> Float32Array:
    stream = PythonFeatureStream(warmup_ns=warmup_ns)
    rows = [stream.features.copy() for event in events if stream.on_event(event)]
    return np.array(rows, np.float32).reshape(len(rows), FEATURE_COUNT)


# ---- from scratch --------------------------------------------------------------------------------------


def from_scratch(events: Sequence[MarketEvent]) -> dict[str, float]:
    """The features after the last of these events, which is a quote or a trade."""
    now = events[-1].receive_ns
    quotes = [event for event in events if isinstance(event, BestQuote)]
    trades = [event for event in events if isinstance(event, Trade)]
    quote = quotes[-1]
    mid = (quote.bid_price_e8 + quote.ask_price_e8) / 2
    named: dict[str, float] = {}

    def within(received: Sequence[BestQuote] | Sequence[Trade], window_ns: int) -> list[int]:
        """Which of these events lie in (now - window, now]; of the quotes the first is where windows
        begin."""
        first = 1 if received is quotes else 0
        return [n for n in range(first, len(received)) if received[n].receive_ns > now - window_ns]

    longest = within(quotes, 10_000 * MS)
    usual = sum(_resting(quotes[n]) for n in longest) / len(longest) if longest else _resting(quote)
    _touch(named, quote, usual)
    for window, length_ms in WINDOWS:
        quoted, traded = within(quotes, length_ms * MS), within(trades, length_ms * MS)
        _flows(named, window, quotes, quoted, usual)
        _trades(named, window, [trades[n] for n in traded], mid)
        earlier = [old for old in quotes if old.receive_ns <= now - length_ms * MS]
        then = _mid(earlier[-1] if earlier else quotes[0])
        named[f"mid_return_bps_{window}"] = 1e4 * (mid - then) / then
        moves = [_mid(quotes[n]) - _mid(quotes[n - 1]) for n in quoted]
        squares = sum(move**2 for move in moves)
        named[f"volatility_bps_{window}"] = 1e4 * math.sqrt(squares) / mid
        named[f"semivariance_asymmetry_{window}"] = _over(
            sum(math.copysign(move**2, move) for move in moves), squares
        )
        named[f"quote_count_log_{window}"] = math.log(1 + len(quoted))
        named[f"trade_count_log_{window}"] = math.log(1 + len(traded))
        if window == "1s":
            named["trade_size_log"] = math.log(1 + 2 * sum(trades[n].size_e8 for n in traded) / usual)
    _latest(named, events, quotes, trades, mid)
    _book(named, events)
    return named


def _resting(quote: BestQuote) -> int:
    return quote.bid_size_e8 + quote.ask_size_e8


def _mid(quote: BestQuote) -> float:
    return (quote.bid_price_e8 + quote.ask_price_e8) / 2


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _touch(named: dict[str, float], quote: BestQuote, usual: float) -> None:
    bid, ask, bid_size, ask_size = (
        quote.bid_price_e8,
        quote.ask_price_e8,
        quote.bid_size_e8,
        quote.ask_size_e8,
    )
    named["queue_imbalance"] = (bid_size - ask_size) / (bid_size + ask_size)
    named["queue_log_ratio"] = math.log((bid_size + 1) / (ask_size + 1))
    weighted = (bid_size * ask + ask_size * bid) / (bid_size + ask_size)
    named["micro_price_offset"] = math.asinh((weighted - (bid + ask) / 2) / TICK)
    named["spread_log_ticks"] = math.log((ask - bid) / TICK)
    named["touch_size_log"] = math.log((bid_size + ask_size) / usual)


def _flows(
    named: dict[str, float], window: str, quotes: Sequence[BestQuote], quoted: Sequence[int], usual: float
) -> None:
    flows = []
    for n in quoted:
        new, old = quotes[n], quotes[n - 1]
        flow = (new.bid_price_e8 >= old.bid_price_e8) * new.bid_size_e8
        flow -= (new.bid_price_e8 <= old.bid_price_e8) * old.bid_size_e8
        flow -= (new.ask_price_e8 <= old.ask_price_e8) * new.ask_size_e8
        flow += (new.ask_price_e8 >= old.ask_price_e8) * old.ask_size_e8
        flows.append(flow)
    named[f"ofi_{window}"] = _over(sum(flows), sum(abs(flow) for flow in flows))
    named[f"ofi_depth_{window}"] = math.asinh(2 * sum(flows) / usual)
    counted = [quotes[n] for n in quoted] or [quotes[-1]]
    difference = sum(quote.bid_size_e8 - quote.ask_size_e8 for quote in counted)
    named[f"queue_imbalance_mean_{window}"] = difference / sum(_resting(quote) for quote in counted)


def _trades(named: dict[str, float], window: str, trades: Sequence[Trade], mid: float) -> None:
    volume = sum(trade.size_e8 for trade in trades)
    named[f"trade_imbalance_{window}"] = _over(sum(t.aggressor * t.size_e8 for t in trades), volume)
    named[f"trade_count_imbalance_{window}"] = _over(sum(t.aggressor for t in trades), len(trades))
    paid = sum(trade.price_e8 * trade.size_e8 for trade in trades)
    named[f"vwap_offset_bps_{window}"] = 1e4 * (paid / volume - mid) / mid if trades else 0.0


def _latest(
    named: dict[str, float],
    events: Sequence[MarketEvent],
    quotes: Sequence[BestQuote],
    trades: Sequence[Trade],
    mid: float,
) -> None:
    now = events[-1].receive_ns
    named["last_trade_sign"] = trades[-1].aggressor if trades else 0
    named["last_trade_offset"] = math.asinh((trades[-1].price_e8 - mid) / TICK) if trades else 0.0
    moved = [n for n in range(1, len(quotes)) if _mid(quotes[n]) != _mid(quotes[n - 1])]
    last_move = moved[-1] if moved else 0
    named["last_mid_move_sign"] = (
        math.copysign(1, _mid(quotes[last_move]) - _mid(quotes[last_move - 1])) if moved else 0
    )
    for kind, name in ((BestQuote, "since_quote_log"), (Trade, "since_trade_log")):
        before = [event for event in events[:-1] if isinstance(event, kind)]
        named[name] = math.log(1 + (now - before[-1].receive_ns) / 1e3) if before else 0.0
    named["since_mid_move_log"] = math.log(1 + (now - quotes[last_move].receive_ns) / 1e3)
    depth = [event for event in events if isinstance(event, DepthDiff | DepthSnapshot)]
    named["since_depth_log"] = math.log(1 + (now - depth[-1].receive_ns) / 1e3)


def _book(named: dict[str, float], events: Sequence[MarketEvent]) -> None:
    tables: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for event in events:
        if isinstance(event, DepthDiff | DepthSnapshot):
            tables[0].update(event.bids)
            tables[1].update(event.asks)
    bids = sorted((level for level in tables[0].items() if level[1]), reverse=True)
    asks = sorted(level for level in tables[1].items() if level[1])
    mid = (bids[0][0] + asks[0][0]) / 2

    def imbalance(bids: Sequence[Level], asks: Sequence[Level]) -> float:
        bid_size, ask_size = sum(size for _, size in bids), sum(size for _, size in asks)
        return _over(bid_size - ask_size, bid_size + ask_size)

    for levels in (5, 10, 20):
        named[f"book_imbalance_{levels}"] = imbalance(bids[:levels], asks[:levels])
    for bps in (1, 5):
        near_bids = [level for level in bids if mid - level[0] <= mid * bps / 1e4]
        near_asks = [level for level in asks if level[0] - mid <= mid * bps / 1e4]
        named[f"book_imbalance_{bps}bps"] = imbalance(near_bids, near_asks)

    def distance(levels: Sequence[Level]) -> float:
        return sum(abs(price - mid) * size for price, size in levels) / sum(size for _, size in levels)

    bid_distance, ask_distance = distance(bids[:20]), distance(asks[:20])
    named["book_distance_asymmetry"] = (ask_distance - bid_distance) / (ask_distance + bid_distance)
    named["book_gap_log_ratio"] = math.log((asks[1][0] - asks[0][0]) / (bids[0][0] - bids[1][0]))


def assert_as_from_scratch(events: Sequence[MarketEvent], every: int = 1) -> None:
    """Compare each `every`th sample of the stream with the recomputation of all before it."""
    stream = PythonFeatureStream(warmup_ns=0)
    taken = 0
    for number, event in enumerate(events, start=1):
        if not stream.on_event(event):
            continue
        taken += 1
        if taken % every:
            continue
        named = from_scratch(events[:number])
        expected = np.array([named[name] for name in FEATURE_NAMES]).clip(LOWER_BOUNDS, UPPER_BOUNDS)
        for name, value, wanted in zip(FEATURE_NAMES, stream.features, expected, strict=True):
            assert value == pytest.approx(wanted, rel=1e-6, abs=1e-6), f"{name} after event {number}"
    assert taken >= every


# ---- properties ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), events=st.integers(1, 60))
def test_the_stream_equals_a_recomputation_from_scratch(seed: int, events: int) -> None:
    assert_as_from_scratch(market(seed, events))


def test_windows_stay_right_when_a_long_busy_stream_is_trimmed() -> None:
    """More events than a log holds before it forgets, over more time than the longest window; then
    silence."""
    busy = market(1, 12_000, gaps_ns=(0, 3_500, 800_000, 9 * MS))
    late = busy[-1].receive_ns + 12_000 * MS
    assert_as_from_scratch([*busy, Trade(late, 0, MIDDLE * TICK, 5, 1)], every=2_003)
    stream = PythonFeatureStream(warmup_ns=0)
    for event in busy:
        stream.on_event(event)
    stream.on_event(Trade(late, 0, MIDDLE * TICK, 5, 1))
    named = from_scratch([*busy, Trade(late, 0, MIDDLE * TICK, 5, 1)])
    assert stream.features == pytest.approx(
        np.array([named[name] for name in FEATURE_NAMES]).clip(LOWER_BOUNDS, UPPER_BOUNDS), rel=1e-6, abs=1e-6
    )


def mirrored(event: MarketEvent) -> MarketEvent:
    """The same event with the sides of the market exchanged, prices reflected at the middle."""

    def price(price_e8: int) -> int:
        return 2 * MIDDLE * TICK - price_e8

    def levels(side: Sequence[Level]) -> tuple[Level, ...]:
        return tuple((price(price_e8), size) for price_e8, size in side)

    match event:
        case BestQuote(now, update, bid, bid_size, ask, ask_size):
            return BestQuote(now, update, price(ask), ask_size, price(bid), bid_size)
        case Trade(now, number, price_e8, size, aggressor):
            return Trade(now, number, price(price_e8), size, -aggressor)
        case DepthDiff(now, previous, last, bids, asks):
            return DepthDiff(now, previous, last, levels(asks), levels(bids))
        case DepthSnapshot(now, last, bids, asks):
            return DepthSnapshot(now, last, levels(asks), levels(bids))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_exchanging_the_sides_flips_the_signed_features_and_no_others(seed: int) -> None:
    events = market(seed, 80)
    plain, mirror = samples(events), samples([mirrored(event) for event in events])
    # The mid is reflected, so what is counted in bps changes by up to 2e-4 of itself.
    np.testing.assert_allclose(mirror, plain * MIRROR, rtol=5e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.sampled_from(GAPS_NS), st.booleans(), *[st.integers(1, 2**53)] * 4),
        min_size=1,
        max_size=40,
    )
)
def test_whatever_the_prices_and_sizes_every_feature_is_finite_bounded_and_normal(
    events: list[tuple[int, bool, int, int, int, int]],
) -> None:
    stream = PythonFeatureStream(tick_size_e8=1, warmup_ns=0)
    stream.on_event(DepthSnapshot(0, 1, ((3, 1), (1, 2**53)), ((4, 2**53), (2**53, 1))))
    now_ns = 0
    for gap_ns, is_quote, price, more, size, other_size in events:
        now_ns += gap_ns
        event = (
            BestQuote(now_ns, 0, price, size, price + more, other_size)
            if is_quote
            else Trade(now_ns, 0, price, size, 1 if other_size % 2 else -1)
        )
        if stream.on_event(event):
            features = stream.features
            assert np.isfinite(features).all()
            assert (features >= LOWER_BOUNDS).all()
            assert (features <= UPPER_BOUNDS).all()
            assert (np.abs(features[features != 0]) >= np.finfo(np.float32).smallest_normal).all()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_the_same_events_give_the_same_bits(seed: int) -> None:
    events = market(seed, 60)
    assert samples(events).tobytes() == samples(events).tobytes()


def test_a_shift_of_the_clock_changes_nothing() -> None:
    """The windows know differences of time only; a year of nanoseconds later the bits are the same."""
    shift_ns = 31_536_000 * 10**9

    def later(event: MarketEvent) -> MarketEvent:
        match event:
            case BestQuote(now, update, bid, bid_size, ask, ask_size):
                return BestQuote(now + shift_ns, update, bid, bid_size, ask, ask_size)
            case Trade(now, number, price, size, aggressor):
                return Trade(now + shift_ns, number, price, size, aggressor)
            case DepthDiff(now, previous, last, bids, asks):
                return DepthDiff(now + shift_ns, previous, last, bids, asks)
            case DepthSnapshot(now, last, bids, asks):
                return DepthSnapshot(now + shift_ns, last, bids, asks)

    events = market(3, 300)
    assert samples(events).tobytes() == samples([later(event) for event in events]).tobytes()


# ---- when a sample is taken
# ------------------------------------------------------------------------------------------

SNAPSHOT = DepthSnapshot(0, 1, ((990, 5), (980, 6)), ((1000, 7), (1010, 8)))


def quote(now_ns: int) -> MarketEvent:
    return BestQuote(now_ns, 0, 990, 5, 1000, 7)


def test_samples_begin_when_the_warm_up_has_passed_and_come_with_quotes_and_trades_alone() -> None:
    stream = PythonFeatureStream()
    stream.on_event(SNAPSHOT)
    assert not stream.on_event(quote(1_000))
    assert not stream.on_event(quote(10_000 * MS + 999))
    assert stream.on_event(Trade(10_000 * MS + 1_000, 0, 990, 1, 1))
    assert stream.warm
    assert stream.on_event(quote(10_000 * MS + 1_000))
    assert not stream.on_event(DepthDiff(10_000 * MS + 1_000, 1, 2, (), ()))
    assert stream.samples == 2


def test_no_sample_without_a_book_and_none_from_a_gap_until_the_next_snapshot() -> None:
    stream = PythonFeatureStream(warmup_ns=0)
    assert not stream.on_event(quote(1))
    stream.on_event(SNAPSHOT.__class__(2, 1, SNAPSHOT.bids, SNAPSHOT.asks))
    assert stream.on_event(quote(3))
    stream.on_event(DepthDiff(4, 5, 6, (), ()))
    assert stream.book_breaks == 1
    assert not stream.on_event(quote(5))
    stream.on_event(DepthSnapshot(6, 6, SNAPSHOT.bids, SNAPSHOT.asks))
    assert stream.on_event(quote(7))


@pytest.mark.parametrize(
    "event",
    [
        BestQuote(2, 0, 1000, 5, 1000, 7),
        BestQuote(2, 0, 1010, 5, 1000, 7),
        BestQuote(2, 0, 0, 0, 1000, 7),
        BestQuote(2, 0, 990, 5, 1000, 0),
        Trade(2, 0, 0, 1, 1),
        Trade(2, 0, 990, 0, 1),
    ],
)
def test_an_event_that_cannot_be_meant_is_counted_and_changes_nothing(event: MarketEvent) -> None:
    def run(events: Sequence[MarketEvent]) -> tuple[PythonFeatureStream, bytes]:
        stream = PythonFeatureStream(warmup_ns=0)
        for each in events:
            stream.on_event(each)
        return stream, stream.features.tobytes()

    without = [SNAPSHOT, quote(1), quote(3)]
    stream, features = run([*without[:2], event, without[2]])
    assert stream.events_ignored == 1
    assert features == run(without)[1]


def test_an_event_from_the_past_is_refused() -> None:
    stream = PythonFeatureStream()
    stream.on_event(quote(10))
    with pytest.raises(ValueError, match="received at 9, before the last one at 10"):
        stream.on_event(quote(9))


def test_the_vector_is_one_array_for_life() -> None:
    stream = PythonFeatureStream(warmup_ns=0)
    view = stream.features
    stream.on_event(SNAPSHOT)
    stream.on_event(quote(1))
    assert view is stream.features
    assert view.any()


@pytest.mark.parametrize(
    ("given_e8", "make", "expected_e8"),
    [
        (0, lambda: SNAPSHOT, 10),
        (0, lambda: DepthSnapshot(0, 1, (), ()), 0),
        (5, lambda: SNAPSHOT, 5),
    ],
)
def test_the_tick_is_given_or_read_off_the_snapshot(
    given_e8: int, make: Callable[[], DepthSnapshot], expected_e8: int
) -> None:
    stream = PythonFeatureStream(tick_size_e8=given_e8, warmup_ns=0)
    stream.on_event(make())
    assert stream.tick_size_e8 == expected_e8
    assert stream.on_event(quote(1)) is (expected_e8 > 0)


# ---- the catalogue -------------------------------------------------------------------------------------


def test_there_are_64_features_of_distinct_names_within_sane_bounds() -> None:
    assert len(FEATURES) == len(set(FEATURE_NAMES)) == FEATURE_COUNT == 64
    assert all(feature.lower < feature.upper for feature in FEATURES)
    assert all(feature.lower == -feature.upper for feature in FEATURES if feature.mirror < 0)


def test_the_page_of_the_features_is_up_to_date() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "features.md"
    assert page.read_text(encoding="utf-8") == document(), (
        "print it anew: python -m sigd.models.features.document > docs/features.md"
    )


# ---- real markets --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("capture", ["usdm_btcusdt", "usdm_ethusdt", "spot_btcusdt"])
def test_real_captures_give_lively_features_within_bounds(capture_dir: Path, capture: str) -> None:
    stream = PythonFeatureStream()
    rows = [
        stream.features.copy()
        for event in read_capture(min(capture_dir.glob(f"{capture}_*.gz")))
        if stream.on_event(event)
    ]
    features = np.array(rows)
    assert len(features) > 30_000
    assert (stream.book_breaks, stream.events_ignored) == (0, 0)
    assert np.isfinite(features).all()
    assert (features.std(axis=0) > 0).all(), "a feature that never changes tells nothing"
    clipped = ((features >= UPPER_BOUNDS) & (UPPER_BOUNDS > 1)) | (
        (features <= LOWER_BOUNDS) & (LOWER_BOUNDS < -1)
    )
    assert clipped.mean(axis=0).max() < 0.05
