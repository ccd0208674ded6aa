"""Counting and percentiles against plain arithmetic on the durations themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sigd.daemon.admin.client import percentile_ns
from sigd.daemon.serving.counters import (
    BEYOND_NS,
    BINS,
    COARSE_SHIFT,
    FINE_SHIFT,
    QUICK_BINS,
    LatencyCounts,
    ModelCounters,
)
from sigd.wire.status import Status

QUICK_END_NS = QUICK_BINS << FINE_SHIFT
FINE_END_NS = BINS << FINE_SHIFT
COARSE_END_NS = BINS << COARSE_SHIFT

durations = st.one_of(
    st.integers(0, 300), st.integers(0, FINE_END_NS + 300), st.integers(FINE_END_NS - 300, 3 * COARSE_END_NS)
)


def upper_edge_ns(duration_ns: int) -> int:
    """Where the bin of a duration ends."""
    if duration_ns >= COARSE_END_NS:
        return BEYOND_NS
    shift = FINE_SHIFT if duration_ns < FINE_END_NS else COARSE_SHIFT
    return (duration_ns >> shift) + 1 << shift


@given(st.lists(st.tuples(durations, st.integers(1, 5)), max_size=40))
def test_bins_hold_what_was_added(added: list[tuple[int, int]]) -> None:
    counts = LatencyCounts()
    expected: dict[int, int] = {}
    for duration_ns, count in added:
        counts.add(duration_ns, count)
        edge_ns = upper_edge_ns(duration_ns)
        expected[edge_ns] = expected.get(edge_ns, 0) + count
    assert counts.sparse() == sorted(expected.items())
    assert counts.max_ns == max((duration_ns for duration_ns, _ in added), default=0)


@pytest.mark.parametrize(
    ("duration_ns", "edge_ns"),
    [
        (0, 128),
        (127, 128),
        (128, 256),
        (FINE_END_NS - 1, FINE_END_NS),
        (FINE_END_NS, FINE_END_NS + (1 << COARSE_SHIFT)),
        (COARSE_END_NS - 1, COARSE_END_NS),
        (COARSE_END_NS, BEYOND_NS),
        (COARSE_END_NS * 100, BEYOND_NS),
    ],
)
def test_edges(duration_ns: int, edge_ns: int) -> None:
    counts = LatencyCounts()
    counts.add(duration_ns)
    assert counts.sparse() == [(edge_ns, 1)]


@given(st.lists(durations, min_size=1, max_size=200), st.floats(0.1, 100))
def test_a_percentile_is_the_edge_above_the_ranked_duration(sample: list[int], percent: float) -> None:
    counts = LatencyCounts()
    for duration_ns in sample:
        counts.add(duration_ns)
    ranked = sorted(sample)[math.ceil(len(sample) * percent / 100) - 1]
    assert percentile_ns(counts.sparse(), percent) == upper_edge_ns(ranked)


def test_no_percentile_of_nothing() -> None:
    assert percentile_ns([], 99.0) == 0


answers = st.lists(
    st.one_of(st.integers(0, QUICK_END_NS + 300), st.integers(0, 2 * FINE_END_NS)).flatmap(
        lambda total: st.tuples(st.just(total), st.integers(0, total), st.booleans())
    ),
    max_size=60,
)


@given(answers)
@example([(FINE_END_NS, FINE_END_NS // 2, True), *[(20_000, 8_000, True), (QUICK_END_NS - 1, 0, False)] * 9])
def test_single_answers_count_like_segments_of_one(answers: list[tuple[int, int, bool]]) -> None:
    single, full = ModelCounters(4), ModelCounters(4)
    start_ns = 10**12
    for total_ns, infer_ns, is_single in answers:
        if is_single:
            single.count_single(total_ns, infer_ns)
        else:
            single.count_batch(1, infer_ns)
            single.count_one(total_ns, infer_ns)
        full.count_batch(1, infer_ns)
        full.count_answers(np.array([start_ns], np.uint64), None, start_ns + total_ns, infer_ns)
    for name in ("total", "queue", "model"):
        assert getattr(single, name).sparse() == getattr(full, name).sparse()
        assert abs(getattr(single, name).max_ns - getattr(full, name).max_ns) < 128
        assert getattr(single, name).count() == len(answers)
    assert single.total.max_ns == full.total.max_ns
    assert single.by_status == full.by_status == [len(answers)] + [0] * (len(Status) - 1)
    assert single.batches_by_rows == full.batches_by_rows == [0, len(answers), 0, 0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.sampled_from(Status)), min_size=1, max_size=40),
    st.integers(0, 3_000),
    st.booleans(),
)
def test_a_segment_counts_each_of_its_rows(
    rows: list[tuple[int, Status]], infer_ns: int, all_ok: bool
) -> None:
    ages_ns = sorted((age for age, _ in rows), reverse=True)
    now_ns = 10**12
    counters = ModelCounters(64)
    statuses = None if all_ok else np.array([status for _, status in rows], np.uint16)
    counters.count_answers(np.array([now_ns - age for age in ages_ns], np.uint64), statuses, now_ns, infer_ns)
    expected, queue = LatencyCounts(), LatencyCounts()
    for age_ns in ages_ns:
        expected.add(age_ns)
        queue.add(max(age_ns - infer_ns, 0))
    assert counters.total.sparse() == expected.sparse()
    assert counters.queue.sparse() == queue.sparse()
    given_statuses = [Status.OK] * len(rows) if all_ok else [status for _, status in rows]
    assert counters.by_status == [given_statuses.count(status) for status in Status]
