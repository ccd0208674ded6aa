"""Schedules: pure, seeded, and at the rate asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.bench.load import schedule

rates = st.floats(1.0, 1e5)
durations = st.floats(0.001, 2.0)


@given(rate_hz=rates, duration_s=durations)
def test_constant_is_evenly_spaced_and_fills_the_duration(rate_hz: float, duration_s: float) -> None:
    offsets = schedule.constant(rate_hz, duration_s)
    assert offsets[0] == 0
    assert offsets[-1] <= duration_s * 1e9
    assert offsets.size == pytest.approx(rate_hz * duration_s, abs=1)
    np.testing.assert_allclose(np.diff(offsets), 1e9 / rate_hz, atol=1)


def test_constant_of_a_rate_that_divides_a_second_is_exact() -> None:
    assert schedule.constant(4, 1).tolist() == [0, 250_000_000, 500_000_000, 750_000_000]


@given(rate_hz=rates, duration_s=durations, seed=st.integers(0, 2**32))
def test_poisson_is_a_function_of_its_seed_and_stays_in_the_duration(
    rate_hz: float, duration_s: float, seed: int
) -> None:
    offsets = schedule.poisson(rate_hz, duration_s, seed)
    np.testing.assert_array_equal(offsets, schedule.poisson(rate_hz, duration_s, seed))
    assert offsets.size >= 1
    assert (np.diff(offsets) >= 0).all()
    if offsets.size > 1:
        assert offsets[-1] <= duration_s * 1e9
    assert abs(offsets.size - rate_hz * duration_s) <= 8 * np.sqrt(rate_hz * duration_s) + 2


def test_poisson_gaps_are_exponential() -> None:
    gaps_us = np.diff(schedule.poisson(10_000, 20, seed=3)) / 1000
    assert gaps_us.mean() == pytest.approx(100, rel=0.01)
    assert gaps_us.std() == pytest.approx(100, rel=0.02)
    assert (gaps_us > 300).mean() == pytest.approx(np.exp(-3), rel=0.1)


def test_other_seeds_give_other_arrivals() -> None:
    assert not np.array_equal(schedule.poisson(1000, 1, 1)[:100], schedule.poisson(1000, 1, 2)[:100])


@given(
    gaps=st.lists(st.integers(0, 10**9), min_size=1, max_size=50),
    speed=st.floats(0.1, 1000),
    start=st.integers(0, 2**60),
)
def test_a_capture_keeps_its_gaps_divided_by_the_speed(gaps: list[int], speed: float, start: int) -> None:
    arrivals = start + np.cumsum([0, *gaps])
    offsets = schedule.of_capture(arrivals, speed)
    assert offsets[0] == 0
    np.testing.assert_allclose(offsets, (arrivals - arrivals[0]) / speed, atol=1)


def test_a_step_back_of_the_collectors_clock_is_simultaneous() -> None:
    arrivals = np.array([100, 200, 150, 300])
    assert schedule.of_capture(arrivals, 1.0).tolist() == [0, 100, 100, 200]


def test_warmup_comes_before_zero_at_the_same_rate() -> None:
    offsets = schedule.constant(1000, 0.5)
    with_warmup = schedule.with_warmup(offsets, 100_000_000)
    warmup = with_warmup[with_warmup < 0]
    assert warmup[0] == -100_000_000
    assert warmup.size == pytest.approx(100, abs=2)
    np.testing.assert_array_equal(with_warmup[with_warmup >= 0], offsets)
    assert (np.diff(with_warmup) > 0).all()
    assert schedule.with_warmup(offsets, 0) is offsets


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_numbers_that_make_no_schedule_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="rate_hz"):
        schedule.constant(value, 1.0)
    with pytest.raises(ValueError, match="duration_s"):
        schedule.poisson(1.0, value, 0)
    with pytest.raises(ValueError, match="speed"):
        schedule.of_capture(np.array([1, 2]), value)


def test_an_empty_capture_is_refused() -> None:
    with pytest.raises(ValueError, match="no events"):
        schedule.of_capture(np.empty(0, dtype=np.int64), 1.0)
