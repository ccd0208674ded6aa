"""Buckets of Prometheus against plain arithmetic on the durations themselves."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sigd.daemon.admin.metrics.buckets import (
    LATENCY_BOUNDS_US,
    ROWS_BOUNDS,
    latency_histogram,
    rows_histogram,
)
from sigd.daemon.serving.counters import (
    BEYOND_NS,
    BINS,
    COARSE_SHIFT,
    END_NS,
    FINE_SHIFT,
    LatencyCounts,
    ModelCounters,
)

FINE_END_NS = BINS << FINE_SHIFT
durations = st.one_of(
    st.integers(0, 70_000), st.integers(0, FINE_END_NS + 300_000), st.integers(0, 2 << (COARSE_SHIFT + 13))
)


def bin_edges(duration_ns: int) -> tuple[int, int]:
    """Of the bin that a duration counts in."""
    if duration_ns >= END_NS:
        return END_NS, BEYOND_NS
    shift = FINE_SHIFT if duration_ns < FINE_END_NS else COARSE_SHIFT
    index = duration_ns >> shift
    return index << shift, (index + 1) << shift


@given(st.lists(durations, max_size=60))
@example([999, 1000, 1023, 1024, 999_999, 1_000_000, FINE_END_NS - 1, FINE_END_NS])
@example([FINE_END_NS - 1])
@example([END_NS - 1, END_NS, 7_060_000_000])
def test_each_bucket_holds_the_bins_that_fit_in_whole(sample: list[int]) -> None:
    counts = LatencyCounts()
    for duration_ns in sample:
        counts.add(duration_ns)
    *buckets, count, total_us = latency_histogram(counts)
    edges = [bin_edges(duration_ns) for duration_ns in sample]
    for bound_us, held in zip(LATENCY_BOUNDS_US, buckets, strict=False):
        assert held == sum(upper_ns <= bound_us * 1000 for _, upper_ns in edges)
    assert len(buckets) == len(LATENCY_BOUNDS_US) + 1
    assert buckets[-1] == count == len(sample)
    sum_us = math.fsum(
        (sum(bin_edges(duration_ns)) / 2 if duration_ns < FINE_END_NS else duration_ns) / 1000
        for duration_ns in sample
    )
    assert total_us == pytest.approx(sum_us, rel=1e-12, abs=1e-9)


@given(st.lists(st.integers(0, FINE_END_NS - 1), min_size=1, max_size=60))
def test_a_bucket_never_makes_an_answer_faster(sample: list[int]) -> None:
    counts = LatencyCounts()
    for duration_ns in sample:
        counts.add(duration_ns)
    for bound_us, held in zip(LATENCY_BOUNDS_US, latency_histogram(counts), strict=False):
        assert held <= sum(duration_ns <= bound_us * 1000 for duration_ns in sample)
        assert held >= sum(duration_ns <= bound_us * 1000 - 128 for duration_ns in sample if bound_us <= 1000)


def test_single_requests_are_in_the_buckets() -> None:
    counters = ModelCounters(4)
    counters.count_single(60_000, 50_000)
    for _ in range(9):
        counters.count_single(11_500, 6_500)
    bounds = LATENCY_BOUNDS_US.index
    assert latency_histogram(counters.total)[bounds(12.0)] == 9
    assert latency_histogram(counters.model)[bounds(7.0)] == 9
    assert latency_histogram(counters.queue)[bounds(7.0)] == 9


@given(st.dictionaries(st.integers(1, 4096), st.integers(1, 1000), max_size=20))
def test_batches_by_their_rows(batches: dict[int, int]) -> None:
    by_rows = [batches.get(rows, 0) for rows in range(4097)]
    *buckets, count, total = rows_histogram(by_rows)
    for bound, held in zip(ROWS_BOUNDS, buckets, strict=False):
        assert held == sum(number for rows, number in batches.items() if rows <= bound)
    assert buckets[-1] == count == sum(batches.values())
    assert total == sum(rows * number for rows, number in batches.items())


def test_bounds_ascend_and_begin_at_one_microsecond() -> None:
    assert list(LATENCY_BOUNDS_US) == sorted(set(LATENCY_BOUNDS_US))
    assert LATENCY_BOUNDS_US[0] == 1
    assert {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000, 1_000_000} <= set(
        LATENCY_BOUNDS_US
    )
