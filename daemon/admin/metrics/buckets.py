"""From the bins of the counters to the buckets of a Prometheus histogram.

A value is counted in the first bucket that its whole bin fits in. So a bucket never claims an answer to have
been faster
than it was: at worst one that took just its bound counts in the next. Sums take values below 1.05 ms for the
middle of their bin of 128 ns; above, they are exact.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np

from sigd.daemon.serving.counters import BINS, COARSE_SHIFT, FINE_SHIFT

if TYPE_CHECKING:
    from sigd.daemon.serving.counters import LatencyCounts

LATENCY_BOUNDS_US: Final = (
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 70.0),
    *(100.0, 150.0, 200.0, 300.0, 500.0, 700.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0),
    *(100_000.0, 200_000.0, 500_000.0, 1_000_000.0),
)
"""Close together where answers are expected."""
ROWS_BOUNDS: Final = tuple(float(1 << power) for power in range(13))
"""1 to 4,096, the largest batch that can be set."""


def _bins_below(shift: int, bounds_us: tuple[float, ...]) -> list[int]:
    """How many bins end at or below each of the bounds."""
    return [round(bound_us * 1000) >> shift for bound_us in bounds_us]


_FINE_BOUNDS: Final = tuple(bound for bound in LATENCY_BOUNDS_US if bound * 1000 <= BINS << FINE_SHIFT)
_COARSE_BOUNDS: Final = LATENCY_BOUNDS_US[len(_FINE_BOUNDS) :]
_FINE_STARTS: Final = np.array([0, *_bins_below(FINE_SHIFT, _FINE_BOUNDS)])
_COARSE_STARTS: Final = np.array([0, *_bins_below(COARSE_SHIFT, _COARSE_BOUNDS)])
_FINE_MIDDLES_US: Final = ((np.arange(BINS) + 0.5) * (1 << FINE_SHIFT)) / 1000


def latency_histogram(counts: LatencyCounts) -> tuple[float, ...]:
    """As `histogram`, of durations, with LATENCY_BOUNDS_US; the sum is in us."""
    fine, coarse = counts.tables()
    in_buckets = np.add.reduceat(fine, _FINE_STARTS).tolist()
    sum_us = float(fine.astype(np.float64) @ _FINE_MIDDLES_US)
    # What lies beyond the last fine bound belongs to the first coarse bucket.
    beyond = in_buckets.pop()
    if counts.max_ns >= BINS << FINE_SHIFT:
        in_coarse = np.add.reduceat(coarse, _COARSE_STARTS).tolist()
        in_coarse[-1] += counts.beyond
        sum_us += counts.coarse_sum_ns / 1000
    else:
        in_coarse = [0] * len(_COARSE_STARTS)
    in_coarse[0] += beyond
    return histogram([*in_buckets, *in_coarse], sum_us)


def rows_histogram(batches_by_rows: list[int]) -> tuple[float, ...]:
    """As `histogram`, of batches by their rows, with ROWS_BOUNDS."""
    in_buckets = [0] * (len(ROWS_BOUNDS) + 1)
    sum_rows = 0
    for rows, batches in enumerate(batches_by_rows):
        if batches:
            in_buckets[(rows - 1).bit_length()] += batches
            sum_rows += rows * batches
    return histogram(in_buckets, sum_rows)


def histogram(in_buckets: list[int], total: float) -> tuple[float, ...]:
    """The values of a histogram in the order of its lines: for each bucket how many lie in it or below, their
    number, their sum."""
    cumulative = tuple(accumulate(in_buckets))
    return (*cumulative, cumulative[-1], total)
