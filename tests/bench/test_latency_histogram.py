"""Our counts against HdrHistogram's own recording of the same values."""

from __future__ import annotations

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from sigd.bench import histogram

PERCENTILES = (0.0, 50.0, 90.0, 99.0, 99.9, 100.0)


@given(st.lists(st.integers(0, 2**50 - 1), min_size=1, max_size=200))
def test_counts_are_those_of_hdrhistogram(values: list[int]) -> None:
    reference = HdrHistogram(1, 2**50 - 1, 3)
    for value in values:
        reference.record_value(value)
    counts = histogram.count(np.array(values, dtype=np.int64))
    assert int(counts.sum()) == len(values)
    assert histogram.percentiles_ns(counts, PERCENTILES) == [
        reference.get_value_at_percentile(p) for p in PERCENTILES
    ]


@given(st.integers(0, histogram.BINS - 1))
def test_the_lowest_value_of_a_bin_is_counted_in_it(index: int) -> None:
    counts = histogram.count(np.array([histogram.lowest_of_bin(index)]))
    assert np.flatnonzero(counts).tolist() == [index]


def test_values_out_of_range_are_counted_at_its_ends() -> None:
    counts = histogram.count(np.array([-5, 2**52]))
    assert counts[0] == 1
    assert counts[-1] == 1


def test_a_latency_of_minutes_or_days_is_not_cut_off() -> None:
    for seconds in (70, 600, 10 * 86_400):
        (largest_ns,) = histogram.percentiles_ns(histogram.count(np.array([seconds * 10**9])), [100.0])
        assert largest_ns == pytest.approx(seconds * 1e9, rel=0.001)


def test_counts_add_up() -> None:
    first, second = np.array([1, 2, 70_000]), np.array([2, 9_000_000])
    both = histogram.count(np.concatenate([first, second]))
    np.testing.assert_array_equal(histogram.count(first) + histogram.count(second), both)


def test_nothing_counted_has_no_percentiles() -> None:
    assert histogram.percentiles_ns(histogram.empty(), PERCENTILES) == [0] * len(PERCENTILES)


def test_the_portable_encoding_holds_the_same_counts() -> None:
    counts = histogram.count(np.array([10_000] * 99 + [5_000_000]))
    decoded = HdrHistogram.decode(histogram.hdr(counts).encode())
    assert decoded.get_total_count() == 100
    assert decoded.get_value_at_percentile(50) == pytest.approx(10_000, rel=0.001)


def test_hgrm_is_the_distribution_in_microseconds() -> None:
    lines = histogram.hgrm(histogram.count(np.array([10_000] * 99 + [5_000_000]))).splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    value, percentile, total, _ = lines[2].split()
    assert float(value) == pytest.approx(10.0, rel=0.001)
    assert float(percentile) == 0.0
    assert int(total) == 99
    assert any(line.startswith("#[Max") and "5001.21" in line for line in lines), lines[-4:]
