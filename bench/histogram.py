"""Latency counts, in the bins of HdrHistogram, so that any number of requests takes the same memory.

The bins are those of HdrHistogram (hdrhistogram.org) for 1 ns to 2^50 ns, 13 days, at three significant
digits: 2048 of 1 ns, then 1024 for each doubling. No run lasts so long, so no latency is cut off at the last
bin. `native/recorder.hpp` counts in the same bins.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

Counts = npt.NDArray[np.uint64]

BINS = 41 * 1024
_HALF = 1024
_LARGEST_NS = 2**50 - 1
_SIGNIFICANT_DIGITS = 3
CURVE_POINTS = 400


def empty() -> Counts:
    """Counts of nothing: uint64, shape (BINS,)."""
    return np.zeros(BINS, dtype=np.uint64)


def count(values_ns: npt.NDArray[np.int64]) -> Counts:
    """Count values in ns; below 0 counts as 0, and beyond the largest as the largest.

    Returns:
        uint64, shape (BINS,).
    """
    values = np.clip(values_ns, 0, _LARGEST_NS)
    # frexp gives the bit length exactly: every value is below 2**53.
    bits = np.frexp(np.maximum(values, 2 * _HALF - 1).astype(np.float64))[1]
    bucket = (bits - 11).astype(np.int64)
    return np.bincount(bucket * _HALF + (values >> bucket), minlength=BINS).astype(np.uint64)


def lowest_of_bin(index: int) -> int:
    """The smallest value in ns that bin `index` counts."""
    if index < 2 * _HALF:
        return index
    bucket = index // _HALF - 1
    return (index - bucket * _HALF) << bucket


def hdr(counts: Counts) -> HdrHistogram:
    """The same counts as an HdrHistogram in ns, for percentiles, .hgrm output and its portable encoding."""
    histogram = HdrHistogram(1, _LARGEST_NS, _SIGNIFICANT_DIGITS)
    for index in np.flatnonzero(counts):
        histogram.record_value(lowest_of_bin(int(index)), int(counts[index]))
    return histogram


def percentiles_ns(counts: Counts, percentiles: Sequence[float]) -> list[int]:
    """The value in ns at or below which each percentile of the counts lies; zeros where nothing was
    counted."""
    if not counts.any():
        return [0] * len(percentiles)
    histogram = hdr(counts)
    return [int(histogram.get_value_at_percentile(p)) for p in percentiles]


def hgrm(counts: Counts) -> str:
    """The percentile distribution in microseconds, in HdrHistogram's own text format (the .hgrm file)."""
    text = io.BytesIO()
    hdr(counts).output_percentile_distribution(text, 1000.0)
    return text.getvalue().decode()


def curve(encoded: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The distribution of an encoded HdrHistogram, for a plot.

    Returns:
        (quantiles from 0 to below 1, values in ns at or below which they lie), both float64, rising,
        shape (n,); n is at most CURVE_POINTS, evenly spaced on the scale of a plot.
    """
    decoded = HdrHistogram.decode(encoded)
    total = decoded.total_count
    if not total:
        return np.zeros(1), np.ones(1)
    quantiles, values, seen = [0.0], [float(max(decoded.get_min_value(), 1))], 0
    for item in decoded.get_recorded_iterator():
        quantiles.append(min(seen / total, 1 - 1 / (total + 1)))
        values.append(float(item.value_iterated_to))
        seen += item.count_added_in_this_iter_step
    quantiles.append(1 - 1 / (total + 1))
    values.append(float(decoded.get_max_value()))
    x, y = np.asarray(quantiles), np.maximum(np.asarray(values), 1.0)
    if x.size <= CURVE_POINTS:
        return x, y
    scale = -np.log10(1 - x)
    kept = np.unique(np.searchsorted(scale, np.linspace(0, scale[-1], CURVE_POINTS)))
    return x[kept], y[kept]


def hgrm_of(encoded: str) -> str:
    """As `hgrm`, of an encoded HdrHistogram."""
    text = io.BytesIO()
    HdrHistogram.decode(encoded).output_percentile_distribution(text, 1000.0)
    return text.getvalue().decode()
