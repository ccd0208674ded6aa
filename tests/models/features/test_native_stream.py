"""The native feature stream gives the bits of the one in Python: samples, states, refusals."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.features.test_features import market

from sigd.bench.market.synthetic import SyntheticMarket
from sigd.models.features import PythonFeatureStream
from sigd.models.features.formulas import distance_asymmetry
from sigd.models.market.batch import batches_of
from sigd.models.market.capture import read_capture
from sigd.models.market.events import BestQuote, DepthDiff, DepthSnapshot, MarketEvent, Trade

native = pytest.importorskip(
    "sigd.models.features.native",
    reason="the C extensions are not built: python hatch_build.py",
    exc_type=ImportError,  # the package is there, what was built in it is not
)

Levels = tuple[tuple[int, int], ...]


@st.composite
def odd_markets(draw: st.DrawFn) -> list[MarketEvent]:
    """Events that connect and that do not: gaps, crossed books, stale snapshots, impossible quotes, equal
    times."""
    events: list[MarketEvent] = []
    now_ns, update = 1, 5
    for _ in range(draw(st.integers(1, 60))):
        now_ns += draw(st.sampled_from((0, 1, 10**6, 10**7, 10**9, 11 * 10**9)))
        kind = draw(st.sampled_from("qqqqttdds"))
        price = draw(st.integers(900, 1100))
        sizes = st.integers(0, 10 ** draw(st.sampled_from((1, 9, 15))))
        if kind == "q":
            spread = draw(st.integers(-1, 5))
            events.append(BestQuote(now_ns, 0, price, draw(sizes), price + spread, draw(sizes)))
        elif kind == "t":
            events.append(Trade(now_ns, 0, price, draw(sizes), draw(st.sampled_from((-1, 0, 1)))))
        else:
            levels = st.lists(st.tuples(st.integers(1, 60), sizes), max_size=30)
            bids: Levels = tuple((1000 - step, size) for step, size in draw(levels))
            asks: Levels = tuple((1000 + step - draw(st.integers(0, 1)), size) for step, size in draw(levels))
            if kind == "s":
                events.append(DepthSnapshot(now_ns, draw(st.integers(update - 3, update)), bids, asks))
            else:
                previous = update if draw(st.integers(0, 9)) else update - draw(st.integers(-2, 2))
                update += draw(st.integers(1, 3))
                events.append(DepthDiff(now_ns, previous, update, bids, asks))
    return events


def assert_same(events: Sequence[MarketEvent], warmup_ns: int = 0, tick: int = 0, levels: int = 0) -> int:
    """Event by event and in batches; returns how many samples there were."""
    streams = [
        kind(warmup_ns=warmup_ns, tick_size_e8=tick, snapshot_levels=levels)
        for kind in (PythonFeatureStream, native.NativeFeatureStream)
    ]
    for number, event in enumerate(events):
        twin, fast = (stream.on_event(event) for stream in streams)
        assert twin is fast, f"event {number}"
        assert streams[0].features.tobytes() == streams[1].features.tobytes(), f"event {number}"
        assert streams[0].converged is streams[1].converged, f"event {number}"
        assert streams[0].mid_e8 == streams[1].mid_e8
        assert str(streams[0].book_break) == str(streams[1].book_break)
        assert streams[0].warm is streams[1].warm
    assert streams[0].state() == streams[1].state()
    batched = native.NativeFeatureStream(warmup_ns=warmup_ns, tick_size_e8=tick, snapshot_levels=levels)
    twin_batched = PythonFeatureStream(warmup_ns=warmup_ns, tick_size_e8=tick, snapshot_levels=levels)
    for batch in batches_of(events, 17):
        mine, theirs = batched.on_batch(batch), twin_batched.on_batch(batch)
        assert mine.features.tobytes() == theirs.features.tobytes()
        assert (mine.event.tolist(), mine.mid_e8.tolist()) == (theirs.event.tolist(), theirs.mid_e8.tolist())
    assert batched.state() == streams[0].state()
    return streams[1].samples


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), events=st.integers(1, 120))
def test_samples_are_the_same_bits(seed: int, events: int) -> None:
    assert_same(market(seed, events))


@settings(max_examples=150)
@given(events=odd_markets(), levels=st.sampled_from((0, 10, 1000)))
def test_odd_markets_give_the_same_bits(events: list[MarketEvent], levels: int) -> None:
    assert_same(events, levels=levels)


def test_long_market_gives_the_same_bits_when_windows_are_trimmed() -> None:
    assert assert_same(list(islice(SyntheticMarket(5).events(), 12_000)), warmup_ns=10**10) > 5_000


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), cut=st.integers(0, 200), back=st.booleans())
def test_state_goes_on_in_either_implementation(seed: int, cut: int, back: bool) -> None:
    """Cut anywhere, handed over from one to the other: as if there had been no cut."""
    events = market(seed, 200)
    first, second = (PythonFeatureStream, native.NativeFeatureStream)[:: -1 if back else 1]
    uncut = PythonFeatureStream(warmup_ns=0)
    begun = first(warmup_ns=0)
    for event in events[:cut]:
        uncut.on_event(event)
        begun.on_event(event)
    going_on = second.from_state(begun.state())
    for event in events[cut:]:
        sampled = uncut.on_event(event)
        assert sampled is going_on.on_event(event)
        assert not sampled or uncut.features.tobytes() == going_on.features.tobytes()
    assert uncut.state() == going_on.state()


@given(events=odd_markets(), cut=st.integers(0, 60))
def test_pickled_stream_goes_on_with_a_book_that_waits(events: list[MarketEvent], cut: int) -> None:
    begun = native.NativeFeatureStream(warmup_ns=0)
    for event in events[:cut]:
        begun.on_event(event)
    copied = pickle.loads(pickle.dumps(begun))
    for event in events[cut:]:
        assert begun.on_event(event) is copied.on_event(event)
    assert begun.state() == copied.state()


WIDE = st.integers(-(2**126), 2**126)


@settings(max_examples=400)
@given(WIDE, WIDE | st.integers(-(2**60), 2**60) | st.integers(-(2**90), 2**90), st.integers(0, 120))
def test_quotients_are_rounded_as_python_rounds_them(numerator: int, denominator: int, shift: int) -> None:
    numerator >>= shift
    expected = numerator / denominator if denominator else 0.0

    def words(value: int) -> tuple[int, int]:
        return value >> 64, value % 2**64

    # The division itself, with operands that no market brings about.
    assert native._stream.quotient(*words(numerator), *words(denominator)) == expected


def test_book_too_wide_for_128_bits_is_worked_out_in_python() -> None:
    """Sizes of 10**18 with no common divisor."""
    bids = tuple((1_000_000_007 - 13 * n, 10**18 + n) for n in range(20))
    asks = tuple((1_000_900_001 + 17 * n, 10**18 - 3 * n - 1) for n in range(20))
    events: list[MarketEvent] = [
        DepthSnapshot(1, 1, bids, asks),
        BestQuote(2, 1, 999, 5, 1000, 7),
        Trade(3, 1, 999, 5, 1),
    ]
    assert assert_same(events) == 2
    assert distance_asymmetry(list(bids), list(asks)) != 0


@pytest.mark.parametrize(
    "event",
    [
        BestQuote(2, 0, 1, 2**61, 3, 4),
        Trade(2, 0, 2**61, 1, 1),
        DepthDiff(2, 1, 2, ((-5, 1),), ()),
        BestQuote(2, 0, 2**70, 1, 2**71, 1),
    ],
)
def test_number_beyond_the_kernel_is_refused(event: MarketEvent) -> None:
    stream = native.NativeFeatureStream()
    with pytest.raises(OverflowError):
        stream.on_event(event)


def test_event_from_the_past_is_refused_with_the_same_words() -> None:
    messages = []
    for kind in (PythonFeatureStream, native.NativeFeatureStream):
        stream = kind()
        stream.on_event(BestQuote(10, 0, 1, 1, 2, 1))
        with pytest.raises(ValueError, match="before the last one") as raised:
            stream.on_event(BestQuote(9, 0, 1, 1, 2, 1))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_levels_outside_their_array_are_refused() -> None:
    (batch,) = batches_of([DepthSnapshot(1, 1, ((5, 1),), ((6, 1),))])
    batch.events["values"][0, 2] = 3
    with pytest.raises(ValueError, match="outside the array"):
        native.NativeFeatureStream().on_batch(batch)


@pytest.mark.slow
@pytest.mark.parametrize("capture", ["usdm_btcusdt", "usdm_ethusdt", "spot_btcusdt"])
def test_real_captures_give_the_same_bits(capture_dir: Path, capture: str) -> None:
    (path, *_) = sorted(capture_dir.glob(f"{capture}_*.gz"))
    twin, fast = PythonFeatureStream(), native.NativeFeatureStream()
    for batch in batches_of(read_capture(path)):
        assert twin.on_batch(batch).features.tobytes() == fast.on_batch(batch).features.tobytes()
    assert twin.state() == fast.state()
