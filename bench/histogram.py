"""Latency counts, in the bins of HdrHistogram, so that any number of requests takes the same memory.

The bins are those of HdrHistogram (hdrhistogram.org) for 1 ns to 2^36 ns, about 69 s, at three significant
digits: 2048 of 1 ns, then 1024 for each doubling. `native/recorder.hpp` counts in the same bins.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

Counts = npt.NDArray[np.uint64]

BINS = 27 * 1024
_HALF = 1024
_LARGEST_NS = 2**36 - 1
_SIGNIFICANT_DIGITS = 3


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
