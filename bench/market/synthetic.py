"""A synthetic market for demonstrations: the events of one instrument, seeded, at bursty times, without end.

The touch is one tick wide. Its two queues grow and shrink under quotes and trades; who is emptied moves the
price by a tick. A slowly turning pressure makes one side likelier to be emptied than the other, so that there
is something to predict, though not the thing that a model trained on a real market has learnt. Every event is
what a real feed could
send: the book that the depth messages describe is never crossed and its best levels are those of the last
    quote.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Final

from sigd.bench.market.hawkes import CRYPTO_FUTURES, Burstiness, arrival_times_ns
from sigd.models.market.events import (
    UNITS_PER_ONE,
    BestQuote,
    DepthDiff,
    DepthSnapshot,
    Level,
    MarketEvent,
    Trade,
)

TICK_E8: Final = UNITS_PER_ONE // 10
START_TICKS: Final = 618_000
LEVELS: Final = 20
SIZE_STEP_E8: Final = UNITS_PER_ONE // 1000
_MEAN_SIZE_STEPS: Final = 4_000
_DEPTH_INTERVAL_NS: Final = 52_000_000
_TRADE_SHARE: Final = 0.24
_PRESSURE_TIME_S: Final = 4.0


class SyntheticMarket:
    """One instrument: tick 0.1, sizes in thousandths, prices near 61,800."""

    def __init__(self, seed: int, burstiness: Burstiness = CRYPTO_FUTURES) -> None:
        self._draw = random.Random(seed)
        self._times_ns = arrival_times_ns(burstiness, seed)
        self._bid_ticks = START_TICKS
        self._sizes = [self._fresh_size(), self._fresh_size()]  # steps at the bid and at the ask
        self._pressure = 0.0
        self._now_ns = 0
        self._update_id = 1
        self._depth_update_id = 1
        self._depth_ns = 0
        self._trade_id = 0
        self._published: tuple[dict[int, int], dict[int, int]] = self._image()

    def events(self) -> Iterator[MarketEvent]:
        """A snapshot, then quotes, trades and depth messages; receive_ns counts from 0."""
        bids, asks = self._published
        yield DepthSnapshot(0, self._update_id, _levels(bids, best_first=-1), _levels(asks, best_first=1))
        for time_ns in self._times_ns:
            self._turn_pressure(time_ns)
            if time_ns - self._depth_ns >= _DEPTH_INTERVAL_NS:
                yield self._depth(time_ns)
            elif self._draw.random() < _TRADE_SHARE:
                yield self._trade(time_ns)
            else:
                yield self._quote(time_ns)

    def _turn_pressure(self, time_ns: int) -> None:
        """An Ornstein-Uhlenbeck process of unit variance: above 0 buyers press, below 0 sellers do."""
        elapsed_s = (time_ns - self._now_ns) / 1e9
        self._now_ns = time_ns
        kept = math.exp(-elapsed_s / _PRESSURE_TIME_S)
        self._pressure = kept * self._pressure + math.sqrt(1 - kept * kept) * self._draw.gauss(0, 1)

    def _pressed_side(self) -> int:
        """The side that loses size next: 1, the ask, under buying pressure, else 0, the bid."""
        return int(self._draw.random() < 0.5 + 0.3 * math.tanh(self._pressure))

    def _trade(self, time_ns: int) -> Trade:
        side = self._pressed_side()
        price_ticks = self._bid_ticks + side
        taken = min(self._sizes[side], 1 + int(self._draw.expovariate(1 / 60)))
        self._take(side, taken)
        self._trade_id += 1
        return Trade(time_ns, self._trade_id, price_ticks * TICK_E8, taken * SIZE_STEP_E8, 1 if side else -1)

    def _quote(self, time_ns: int) -> BestQuote:
        side = self._pressed_side()
        if self._draw.random() < 0.52:
            self._take(side, 1 + int(self._draw.expovariate(1 / 450)))
        else:
            self._sizes[1 - side] += 1 + int(self._draw.expovariate(1 / 300))
        self._update_id += 1
        return BestQuote(
            time_ns,
            self._update_id,
            self._bid_ticks * TICK_E8,
            self._sizes[0] * SIZE_STEP_E8,
            (self._bid_ticks + 1) * TICK_E8,
            self._sizes[1] * SIZE_STEP_E8,
        )

    def _take(self, side: int, steps: int) -> None:
        """Take `steps` from a queue; an empty one moves the price by a tick to its side."""
        if steps < self._sizes[side]:
            self._sizes[side] -= steps
            return
        self._bid_ticks += 1 if side else -1
        self._sizes = [self._fresh_size(), self._fresh_size()]

    def _fresh_size(self) -> int:
        return 1 + int(self._draw.expovariate(1 / _MEAN_SIZE_STEPS))

    def _depth(self, time_ns: int) -> DepthDiff:
        self._depth_ns = time_ns
        self._update_id += 1
        old, self._published = self._published, self._image()
        previous, self._depth_update_id = self._depth_update_id, self._update_id
        return DepthDiff(
            time_ns,
            previous,
            self._update_id,
            _changes(old[0], self._published[0]),
            _changes(old[1], self._published[1]),
        )

    def _image(self) -> tuple[dict[int, int], dict[int, int]]:
        """The book as it stands: size in steps by price in ticks. Depth behind the touch is steady in its
        price."""
        bids = {self._bid_ticks: self._sizes[0]}
        asks = {self._bid_ticks + 1: self._sizes[1]}
        for level in range(1, LEVELS):
            for side, ticks in ((bids, self._bid_ticks - level), (asks, self._bid_ticks + 1 + level)):
                side[ticks] = 200 + ticks * 2_654_435_761 % 3_001
        return bids, asks


def _levels(side: dict[int, int], best_first: int) -> tuple[Level, ...]:
    return tuple(
        (ticks * TICK_E8, side[ticks] * SIZE_STEP_E8) for ticks in sorted(side, key=lambda t: best_first * t)
    )


def _changes(old: dict[int, int], new: dict[int, int]) -> tuple[Level, ...]:
    changed = {ticks: 0 for ticks in old if ticks not in new}
    changed.update({ticks: steps for ticks, steps in new.items() if old.get(ticks) != steps})
    return tuple((ticks * TICK_E8, steps * SIZE_STEP_E8) for ticks, steps in changed.items())
