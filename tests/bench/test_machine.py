"""What is read off the machine: hiccups, cores, facts."""

from __future__ import annotations

import os

import pytest

from sigd.bench import environment, hiccup
from sigd.bench.load.contract import HICCUP_NS
from sigd.bench.native.build import NativePrograms
from sigd.bench.pinning import allowed_cpus, choose_cores, pinned
from sigd.daemon.runtime.hiccups import spin


class SteppingClock:
    """Advances 20 ns a reading, and once, at `at_reading`, by `jump_ns` more."""

    def __init__(self, at_reading: int = -1, jump_ns: int = 0) -> None:
        self._readings = 0
        self._now_ns = 0
        self._at_reading = at_reading
        self._jump_ns = jump_ns

    def __call__(self) -> int:
        self._now_ns += 20 + (self._jump_ns if self._readings == self._at_reading else 0)
        self._readings += 1
        return self._now_ns


def test_a_steady_clock_has_no_hiccups() -> None:
    found = spin(1_000_000, HICCUP_NS, SteppingClock())
    assert (found.gaps, found.sum_ns, found.worst_ns) == (0, 0, 20)
    assert hiccup.clock_cost_ns(SteppingClock()) == 20
    assert found.spun_ns >= 1_000_000


def test_a_gap_is_counted_summed_and_the_worst_kept() -> None:
    found = spin(1_000_000, HICCUP_NS, SteppingClock(at_reading=1000, jump_ns=50_000))
    assert (found.gaps, found.sum_ns, found.worst_ns) == (1, 50_020, 50_020)


@pytest.mark.parametrize("native", [True, False])
def test_every_core_asked_for_is_watched(native: bool, request: pytest.FixtureRequest) -> None:
    programs: NativePrograms | None = request.getfixturevalue("programs") if native else None
    cpus = allowed_cpus()[:2]
    found = hiccup.measure(cpus, 0.02, programs)
    assert [one.cpu for one in found] == cpus
    for one in found:
        assert one.spun_ns >= 20_000_000
        assert one.worst_ns > 0
        assert 0 < one.clock_cost_ns < 100_000


def test_daemon_and_client_share_no_physical_core() -> None:
    assert choose_cores([0, 1, 2, 3], {0: 0, 1: 1, 2: 0, 3: 1}) == (3, 2)
    assert choose_cores([0, 1], {0: 0, 1: 0}) == (1, 0), "two threads of one core are better than one"
    assert choose_cores([4], {4: 4}) == (None, None)


def test_client_keeps_off_the_lanes_and_the_loop_takes_what_is_left() -> None:
    pairs = {0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 5: 1, 6: 2, 7: 3}
    assert choose_cores(range(8), pairs, lanes=[7]) == (5, 6)
    assert choose_cores(range(8), pairs, lanes=[7, 6]) == (4, 5)
    assert choose_cores([0, 1, 2], {0: 0, 1: 1, 2: 2}, lanes=[2]) == (0, 1)
    assert choose_cores([0, 1], {0: 0, 1: 1}, lanes=[0]) == (1, 1), "the loop sleeps beside the client"
    assert choose_cores([0, 1], {0: 0, 1: 1}, lanes=[0, 1]) == (None, None)


def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    cpu = min(before)
    with pinned(cpu):
        assert os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before
    with pinned(None):
        assert os.sched_getaffinity(0) == before


def test_the_environment_is_read_and_nothing_is_guessed() -> None:
    facts = environment.read([allowed_cpus()[0], None], 16.0, None)
    assert facts.allowed_cpus == len(allowed_cpus())
    assert facts.kernel == os.uname().release
    assert list(facts.governors) == [str(allowed_cpus()[0])]
    assert facts.compiler == "none"
    assert facts.packages["numpy"][0].isdigit()
