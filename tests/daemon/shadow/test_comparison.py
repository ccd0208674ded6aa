"""What is kept of two models' answers is what comparing all of them at once would give."""

from __future__ import annotations

from math import exp, nan

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sigd.daemon.shadow.comparison import DRIFT_ROWS, Comparison, Moments
from sigd.daemon.shadow.statistics import DIFFERENCE_BOUNDS, OUTPUTS_SHOWN, Statistics

OUTPUTS = 3
Float32Array = npt.NDArray[np.float32]

blocks = st.lists(
    st.integers(1, 40).flatmap(
        lambda rows: hnp.arrays(np.float32, (2, rows, OUTPUTS), elements=st.floats(-1000, 1000, width=32))
    ),
    min_size=1,
    max_size=6,
)


def compare(*blocks: Float32Array, generation: int = 1) -> Comparison:
    """Of each block the first half is what was served."""
    comparison = Comparison(Statistics(), blocks[0].shape[2])
    for served, shadow in blocks:
        comparison.add(served, shadow, generation)
    return comparison


@given(blocks)
def test_in_blocks_it_counts_as_all_at_once(blocks: list[Float32Array]) -> None:
    statistics = compare(*blocks).statistics()
    served, shadow = np.concatenate(blocks, axis=1).astype(np.float64)
    apart = np.abs(shadow - served).max(axis=1)
    assert statistics.compared == len(served)
    assert statistics.agreed == (served.argmax(axis=1) == shadow.argmax(axis=1)).sum()
    assert sum(statistics.differences) == len(served)
    below = np.cumsum(statistics.differences)[:-1].tolist()
    assert below == [int((apart <= bound).sum()) for bound in DIFFERENCE_BOUNDS]
    assert statistics.difference_sum == pytest.approx(float(apart.sum()))
    assert statistics.difference_max == apart.max()
    assert (statistics.skipped, statistics.left_out, statistics.failed) == (0, 0, 0)


@given(blocks)
def test_moments_are_those_of_weighted_rows(blocks: list[Float32Array]) -> None:
    moments = Moments(OUTPUTS)
    weights: list[float] = []
    for block in blocks:
        moments.add(block[0].astype(np.float64))
        weights = [weight * exp(-len(block[0]) / DRIFT_ROWS) for weight in weights] + [1.0] * len(block[0])
    rows = np.concatenate(blocks, axis=1)[0].astype(np.float64)
    mean = np.average(rows, axis=0, weights=weights)
    variance = np.average((rows - mean) ** 2, axis=0, weights=weights)
    assert moments.mean == pytest.approx(mean, abs=1e-9)
    assert moments.deviation == pytest.approx(np.sqrt(variance), abs=1e-6)


def test_what_was_long_ago_is_forgotten() -> None:
    draw = np.random.default_rng(0)
    comparison = Comparison(Statistics(), 1)
    for shift in (5.0, 0.0):
        for _ in range(100):
            served = draw.standard_normal((1000, 1)).astype(np.float32)
            comparison.add(served, served + np.float32(shift), 1)
        (output,) = comparison.statistics().outputs
        assert output.drift == pytest.approx(shift, abs=0.3)
        assert output.shadow_mean - output.served_mean == pytest.approx(shift, abs=0.001)


def test_drift_is_in_deviations_of_what_was_served() -> None:
    served = np.array([[0.0, 7.0], [4.0, 7.0]], np.float32)
    shadow = np.array([[3.0, 7.0], [3.0, 9.0]], np.float32)
    statistics = compare(np.stack([served, shadow])).statistics()
    first, second = statistics.outputs
    assert (first.served_mean, first.served_deviation, first.shadow_mean, first.shadow_deviation) == (
        2,
        2,
        3,
        0,
    )
    assert first.drift == 0.5
    assert (second.served_mean, second.served_deviation, second.drift) == (7.0, 0.0, None)


def test_an_output_that_never_varies_has_no_drift_whatever_rounding_leaves() -> None:
    served = np.full((1, 1), 0.1, np.float32)
    comparison = Comparison(Statistics(), 1)
    for rows in (1, 3, 7, 300, 11):
        comparison.add(served.repeat(rows, axis=0), served.repeat(rows, axis=0) * 2, 1)
    assert comparison.statistics().outputs[0].drift is None


def test_another_generation_begins_another_drift_and_counts_on() -> None:
    one, other = np.zeros((2, 4, 1), np.float32), np.ones((2, 2, 1), np.float32)
    comparison = compare(one)
    comparison.add(other[0], other[1], generation=2)
    statistics = comparison.statistics()
    assert (statistics.generation, statistics.compared) == (2, 6)
    assert statistics.outputs[0].served_mean == 1


def test_rows_without_a_number_fail_and_spoil_nothing() -> None:
    served = np.arange(8, dtype=np.float32).reshape(4, 2)
    shadow = served.copy()
    shadow[1, 0], shadow[3, 1] = nan, np.inf
    statistics = compare(np.stack([served, shadow])).statistics()
    assert (statistics.compared, statistics.failed, statistics.agreed) == (2, 2, 2)
    assert statistics.difference_max == 0
    assert statistics.outputs[0].served_mean == 2
    assert compare(np.full((2, 3, 2), nan, np.float32)).statistics().failed == 3


def test_it_counts_on_where_another_process_stood() -> None:
    block = np.random.default_rng(1).standard_normal((2, 50, OUTPUTS)).astype(np.float32)
    before = compare(block[:, :20])
    before.skipped, before.left_out = 5, 6
    after = Comparison(before.statistics(), OUTPUTS)
    after.add(block[0, 20:], block[1, 20:], generation=1)
    whole, joined = compare(block).statistics(), after.statistics()
    assert (joined.compared, joined.agreed) == (whole.compared, whole.agreed)
    assert (joined.differences, joined.difference_max) == (whole.differences, whole.difference_max)
    assert joined.difference_sum == pytest.approx(whole.difference_sum)
    assert (joined.skipped, joined.left_out) == (5, 6)


def test_of_many_outputs_the_first_are_told() -> None:
    block = np.random.default_rng(2).standard_normal((2, 9, OUTPUTS_SHOWN + 5)).astype(np.float32)
    statistics = compare(block).statistics()
    assert len(statistics.outputs) == OUTPUTS_SHOWN
    assert statistics.difference_max == np.abs(block[1].astype(np.float64) - block[0]).max()
