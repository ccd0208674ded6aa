"""A capture's arrivals as a load of the comparison."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from sigd.bench.alternatives.capture import REQUESTS_MAX, Arrivals, fastest
from sigd.bench.alternatives.loads import capture_load
from sigd.bench.commands.alternatives import main

SECOND = 1_000_000_000


def arrivals(*seconds: float) -> Arrivals:
    return Arrivals("day.gz", np.rint(np.array(seconds) * SECOND).astype(np.int64))


def test_the_busiest_seconds_are_taken() -> None:
    found = arrivals(0, 1.5, 4, 4.25, 4.5, 9).busiest(1.0, 1.0)
    assert (found / SECOND).tolist() == [0, 0.25, 0.5]


def test_speed_shortens_the_gaps_and_takes_more_of_the_capture() -> None:
    found = arrivals(0, 1.5, 4, 4.25, 4.5, 9).busiest(1.0, 10.0)
    assert (found / SECOND).tolist() == pytest.approx([0, 0.15, 0.4, 0.425, 0.45, 0.9])


def test_speeds_go_as_far_as_the_capture_fills_a_turn() -> None:
    assert arrivals(*range(31)).speeds(1.0) == [1, 2, 5, 10, 20]
    assert arrivals(0, 0.1).speeds(1.0) == [1]
    many = Arrivals("day.gz", np.arange(10 * REQUESTS_MAX) * 1_000_000)
    assert many.speeds(1.0)[-1] == 200


@pytest.mark.parametrize(("most", "expected"), [(0.5, 1.0), (2, 2.0), (7, 5.0), (1000, 20.0)])
def test_the_fastest_is_found_from_below(most: float, expected: float) -> None:
    tried: list[float] = []

    def survives(speed: float) -> bool:
        tried.append(speed)
        return speed <= most

    assert fastest(survives, [1, 2, 5, 10, 20]) == expected
    assert len(tried) == len(set(tried))


def test_both_loads_have_names_of_their_own() -> None:
    slow, fast = (capture_load(arrivals(0, 1, 2), speed, 1.0) for speed in (1, 2))
    assert (slow.name, fast.name) == ("capture-1x", "capture-fast")
    assert not slow.closed
    assert slow.title == "day.gz, as they were"


def test_salvage_without_a_capture_is_refused() -> None:
    done = CliRunner().invoke(main, ["--salvage"])
    assert done.exit_code == 2
    assert "leave out --salvage" in done.output
