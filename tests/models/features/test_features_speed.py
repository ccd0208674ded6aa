"""Benchmark of the feature stream; an ordinary test run only sees that it runs. Figures come from

pytest tests/models/features/test_features_speed.py --benchmark-enable --benchmark-columns=min,median,iqr
"""

from __future__ import annotations

import random

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from sigd.models.features import FeatureStream
from sigd.models.market.events import BestQuote, DepthSnapshot, MarketEvent, Trade

TICK = 10_000_000
EVENTS = 1_000
SPACING_NS = 3_700_000
"""270 events a second, as busy a minute as any of the captures."""


def _events(draw: random.Random, start_ns: int) -> list[MarketEvent]:
    made: list[MarketEvent] = []
    bid = 618_000
    for number in range(EVENTS):
        now_ns = start_ns + number * SPACING_NS
        if number % 4 == 3:
            made.append(Trade(now_ns, number, bid * TICK, draw.randint(1, 10**9), draw.choice((-1, 1))))
        else:
            bid += draw.choice((-1, 0, 0, 0, 0, 0, 0, 0, 1))
            sizes = draw.randint(1, 10**9), draw.randint(1, 10**9)
            made.append(BestQuote(now_ns, number, bid * TICK, sizes[0], (bid + 1) * TICK, sizes[1]))
    return made


@pytest.mark.benchmark(group="a thousand samples")
def test_a_thousand_samples(benchmark: BenchmarkFixture) -> None:
    """A thousand quotes and trades, every window full: divide by a thousand for one."""
    draw = random.Random(0)
    stream = FeatureStream(warmup_ns=0)
    levels = [(number * TICK, 10**9) for number in range(100)]
    bids = tuple((617_000 * TICK - price, size) for price, size in levels)
    stream.on_event(
        DepthSnapshot(0, 1, bids, tuple((619_000 * TICK + price, size) for price, size in levels))
    )
    batches = 0

    def next_batch() -> tuple[tuple[list[MarketEvent]], dict[str, object]]:
        nonlocal batches
        batches += 1
        return (_events(draw, batches * EVENTS * SPACING_NS),), {}

    def run(events: list[MarketEvent]) -> None:
        for event in events:
            stream.on_event(event)

    for _ in range(4):
        run(next_batch()[0][0])
    benchmark.pedantic(run, setup=next_batch, rounds=30)  # type: ignore[no-untyped-call]
    assert stream.samples == batches * EVENTS
