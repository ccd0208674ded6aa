"""Latencies of a recording come from its own stamps, however long they are."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sigd.daemon.commands.inspect_recording import _Latencies

# Only a recording of seconds could show the same through the command.


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60), st.floats(0.1, 100))
def test_percentiles_are_right_to_three_digits(durations_ns: list[int], percent: float) -> None:
    begin_ns = np.full(len(durations_ns), 10**15, np.uint64)
    latencies = _Latencies()
    latencies.add(begin_ns + np.array(durations_ns, np.uint64), begin_ns)
    ranked = sorted(durations_ns)[math.ceil(len(durations_ns) * percent / 100) - 1]
    assert ranked <= latencies.percentile_ns(percent) <= ranked * 1.001
    assert latencies.max_ns == latencies.percentile_ns(100) == max(durations_ns)


def test_seven_seconds_are_seven_seconds() -> None:
    latencies = _Latencies()
    latencies.add(np.array([7_061_234_567], np.uint64), np.array([0], np.uint64))
    assert latencies.percentile_ns(50) == latencies.max_ns == 7_061_234_567
