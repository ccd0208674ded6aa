"""When each request is meant to be sent: pure functions from a seed, a rate or a capture to nanosecond
offsets.

A schedule is made before the run and never moves: a client that falls behind sends late, and the lateness
counts.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

NS_PER_S = 1_000_000_000


def constant(rate_hz: float, duration_s: float) -> Int64Array:
    """One request each 1/rate_hz seconds, the first at 0.

    Returns:
        int64, shape (requests,), ns from the start, rising; all below `duration_s`.

    Raises:
        ValueError: the rate or the duration is not above zero.
    """
    _require_positive(rate_hz=rate_hz, duration_s=duration_s)
    requests = max(1, math.ceil(rate_hz * duration_s - 1e-9))
    offsets: Int64Array = np.rint(np.arange(requests) * (NS_PER_S / rate_hz)).astype(np.int64)
    return offsets


def poisson(rate_hz: float, duration_s: float, seed: int) -> Int64Array:
    """A Poisson process: independent gaps, exponentially distributed with mean 1/rate_hz seconds.

    Returns:
        int64, shape (requests,), ns from the start, never falling; all below `duration_s`. Never empty.

    Raises:
        ValueError: the rate or the duration is not above zero.
    """
    _require_positive(rate_hz=rate_hz, duration_s=duration_s)
    random = np.random.default_rng(seed)
    expected = rate_hz * duration_s
    # Ten standard deviations of room; the loop covers what is left of bad luck.
    block = math.ceil(expected + 10 * math.sqrt(expected) + 10)
    seconds = np.cumsum(random.exponential(1 / rate_hz, block))
    while seconds[-1] < duration_s:
        more = seconds[-1] + np.cumsum(random.exponential(1 / rate_hz, block))
        seconds = np.concatenate([seconds, more])
    kept = seconds[: max(1, int(np.searchsorted(seconds, duration_s)))]
    offsets: Int64Array = np.rint(kept * NS_PER_S).astype(np.int64)
    return offsets


def bursts(size: int, bursts_hz: float, duration_s: float) -> Int64Array:
    """`size` requests at once, `bursts_hz` times a second: as many instruments that tick together.

    Returns:
        int64, shape (bursts * size,), ns from the start, never falling.

    Raises:
        ValueError: the size, the rate or the duration is not above zero.
    """
    _require_positive(size=size)
    return np.repeat(constant(bursts_hz, duration_s), size)


def of_capture(arrivals_ns: Int64Array, speed: float) -> Int64Array:
    """The arrivals of a capture, `speed` times as fast, counted from the first.

    Args:
        arrivals_ns: int64, shape (events,), local receive times in ns. Where the collector's clock stepped
            back, the event counts as simultaneous with the one before it.

    Returns:
        int64, shape (events,), ns from the first, never falling.

    Raises:
        ValueError: no arrivals, or the speed is not above zero.
    """
    _require_positive(speed=speed)
    if arrivals_ns.size == 0:
        raise ValueError("the capture has no events to time requests by")
    since_first = np.maximum.accumulate(arrivals_ns) - arrivals_ns[0]
    offsets: Int64Array = np.rint(since_first / speed).astype(np.int64)
    return offsets


def with_warmup(offsets_ns: Int64Array, warmup_ns: int) -> Int64Array:
    """Put a warm-up before a schedule: the same mean rate, evenly spaced, at offsets from -warmup_ns to below
    0.

    Returns:
        int64, shape (warm-up requests + requests,). Negative offsets are the warm-up, which is not measured.
    """
    if warmup_ns <= 0:
        return offsets_ns
    warmup = np.arange(-warmup_ns, 0, mean_gap_ns(offsets_ns)).astype(np.int64)
    return np.concatenate([warmup[warmup < 0], offsets_ns])


def mean_gap_ns(offsets_ns: Int64Array) -> float:
    """From one request to the next on average, at least 1 ns."""
    return max(1.0, float(offsets_ns[-1]) / offsets_ns.size)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}, expected a finite number above 0")
