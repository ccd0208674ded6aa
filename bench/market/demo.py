"""What `sigd demo` runs: a market in real time, its features, a daemon, and every signal timed.

The market's times are known beforehand, so the screen is drawn only in gaps that are long enough: drawing
takes milliseconds, and an answer that waits for it would be counted as slow.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sigd.bench.histogram import Counts, count, empty, percentiles_ns
from sigd.models.features import FeatureStream
from sigd.models.features.catalogue import WINDOWS_NS
from sigd.models.market.events import UNITS_PER_ONE, MarketEvent
from sigd.wire.client import Client
from sigd.wire.status import Status

WARMUP_NS = WINDOWS_NS[-1]
"""Market time that passes before the first signal, fast forward: the longest window of the features."""
MIDS_KEPT = 60
_DRAW_NS = 25_000_000
_WAKE_NS = 200_000
"""A thread that sleeps wakes so much earlier than it has to, and spins the rest."""
_MID_INTERVAL_NS = 150_000_000


@dataclass(slots=True)
class DemoState:
    """What there is to show.

    Attributes:
        mids: the mid every 150 ms, in the quote currency, the newest last.
        probabilities: softmax of the last answer's outputs.
        latencies: from the send of a request to its signal in hand, counted in histogram bins.
        in_daemon: the part of these between the daemon's stamps of arrival and answer.
        by_status: answers by Status.
    """

    market_s: float = 0.0
    events: int = 0
    signals: int = 0
    mids: deque[float] = field(default_factory=lambda: deque(maxlen=MIDS_KEPT))
    probabilities: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    latencies: Counts = field(default_factory=empty)
    in_daemon: Counts = field(default_factory=empty)
    by_status: list[int] = field(default_factory=lambda: [0] * len(Status))

    def percentiles_us(self, percents: tuple[float, ...]) -> list[float]:
        """Of the latencies so far."""
        return [value / 1e3 for value in percentiles_ns(self.latencies, percents)]

    def daemon_percentile_us(self, percent: float) -> float:
        """Of the daemon's part so far."""
        return percentiles_ns(self.in_daemon, (percent,))[0] / 1e3


def run_demo(
    client: Client,
    events: Iterator[MarketEvent],
    duration_s: float,
    draw: Callable[[DemoState], None],
    *,
    spin: bool = True,
    stream: FeatureStream | None = None,
) -> DemoState:
    """Feed `events`, whose times count from 0, in real time for `duration_s` after the warm-up.

    Args:
        spin: wait for the next event on the core; without it, sleep until shortly before.
        stream: what makes the features; None for a new one.

    Raises:
        SessionError: the daemon ended the session.
    """
    state = DemoState()
    stream = stream or FeatureStream(warmup_ns=WARMUP_NS)
    pending_ns: list[tuple[int, int]] = []
    start_ns = 0
    drawn_ns = mid_ns = 0
    for event in events:
        if event.receive_ns < WARMUP_NS:
            stream.on_event(event)
            continue
        if not start_ns:
            start_ns = time.monotonic_ns() - event.receive_ns
        due_ns = start_ns + event.receive_ns
        if due_ns - time.monotonic_ns() > _DRAW_NS and time.monotonic_ns() - drawn_ns > 2 * _DRAW_NS:
            drawn_ns = time.monotonic_ns()
            _count(state, pending_ns)
            draw(state)
        while (early_ns := due_ns - time.monotonic_ns()) > 0:
            if not spin and early_ns > 2 * _WAKE_NS:
                time.sleep((early_ns - _WAKE_NS) / 1e9)
        state.events += 1
        state.market_s = (event.receive_ns - WARMUP_NS) / 1e9
        if stream.on_event(event):
            sent_ns = time.monotonic_ns()
            response = client.request(stream.features)
            took_ns = time.monotonic_ns() - sent_ns
            pending_ns.append((took_ns, response.send_time_ns - response.receive_time_ns))
            state.signals += 1
            state.by_status[response.status] += 1
            state.probabilities = softmax(response.outputs)
        if event.receive_ns - mid_ns >= _MID_INTERVAL_NS:
            mid_ns = event.receive_ns
            state.mids.append(stream.mid_e8 / UNITS_PER_ONE)
        if state.market_s >= duration_s:
            break
    _count(state, pending_ns)
    draw(state)
    return state


def _count(state: DemoState, pending_ns: list[tuple[int, int]]) -> None:
    if pending_ns:
        took_ns, in_daemon_ns = np.array(pending_ns, np.int64).T
        state.latencies += count(took_ns)
        state.in_daemon += count(in_daemon_ns)
        pending_ns.clear()


def softmax(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Outputs as probabilities, float64, the same shape; NaN where an output is no number."""
    largest = float(outputs.max())
    if not math.isfinite(largest):
        return np.full(len(outputs), np.nan)
    weights = np.exp(outputs.astype(np.float64) - largest)
    return np.asarray(weights / weights.sum())
