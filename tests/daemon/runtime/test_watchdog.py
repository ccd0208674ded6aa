"""A hung loop, ticks that do not come and a batch that does not end all end the feeding of the watchdog."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sigd.daemon.config.choices import IdleStrategy
from sigd.daemon.runtime.ticker import Ticker
from sigd.daemon.runtime.watchdog import LOOKS, LivenessCheck, Watchdog
from sigd.models.errors import BackendFailed

PERIOD_NS = 4_000_000_000
LOOK_NS = PERIOD_NS // LOOKS


class Backend:
    """A CPU's, as far as a look needs one."""

    synchronous = True

    def __init__(self) -> None:
        self.inputs = np.ones((4, 2), np.float32)
        self.empty_batches = 0
        self.failure: Exception | None = None

    def bare_call(self, rows: int) -> Callable[[], object]:
        assert rows == 1

        def run() -> None:
            if self.failure is not None:
                raise self.failure
            assert not self.inputs[0].any()
            self.empty_batches += 1

        return run


class Device:
    """A GPU's."""

    synchronous = False

    def __init__(self) -> None:
        self.warmed = 0
        self.failure: Exception | None = None

    def keep_warm(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.warmed += 1


class Work:
    """A model's batches, moved by the test."""

    def __init__(self, backend: Any) -> None:
        self.name = "lob"
        self.backend = backend
        self.idle = True
        self.last_batch_ns = 0


class Rig:
    """A loop with timers, a ticker, a service manager: all of it fake, with one clock."""

    def __init__(self, strategy: IdleStrategy = IdleStrategy.BACKOFF, watchdog_ns: int = PERIOD_NS) -> None:
        self.now_ns = 0
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.soon: list[Callable[[], object]] = []
        self.fed_ns: list[int] = []
        self.polls = 0
        self.ticks_come = True
        self.works = [Work(Backend())]
        self.stalled_lane = ""
        loop: Any = self
        notifier: Any = SimpleNamespace(watchdog_ns=watchdog_ns, alive=self.alive)
        self.ticker = Ticker(
            loop, strategy, [self.poll], lambda: 0, lambda: self.now_ns, 0, lambda: None, lambda: True
        )
        self.liveness_check = LivenessCheck(lambda: self.now_ns, rest_ns=watchdog_ns)
        self.watchdog = Watchdog(
            loop,
            notifier,
            self.liveness_check,
            self.ticker.interpose,
            lambda: self.works,
            lambda: "fine",
            lambda: self.stalled_lane,
        )
        self.ticker.start()
        self.watchdog.start()

    def alive(self, status: str) -> None:
        assert status == "fine"
        self.fed_ns.append(self.now_ns)

    def poll(self) -> bool:
        self.polls += 1
        return False

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Any:
        timer = (self.now_ns + round(delay_s * 1e9), call)
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: self.timers.remove(timer))

    def call_soon(self, call: Callable[[], object]) -> None:
        self.soon.append(call)

    def run_for(self, duration_ns: int, each_look: Callable[[], None] = lambda: None) -> None:
        """Let the time pass, with one round of the loop after each timer."""
        end_ns = self.now_ns + duration_ns
        while self.timers and self.timers[0][0] <= end_ns:
            self.now_ns, call = self.timers.pop(0)
            each_look()
            call()
            if self.ticks_come:
                due, self.soon = self.soon, []
                for tick in due:
                    tick()
        self.now_ns = end_ns

    def fed_in(self, duration_ns: int, each_look: Callable[[], None] = lambda: None) -> int:
        before = len(self.fed_ns)
        self.run_for(duration_ns, each_look)
        return len(self.fed_ns) - before


@pytest.fixture(params=IdleStrategy, ids=lambda strategy: strategy.value)
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig(request.param)


def test_an_idle_daemon_feeds_it_several_times_in_each_period(rig: Rig) -> None:
    assert rig.fed_in(10 * PERIOD_NS) == 10 * LOOKS


def test_a_busy_daemon_feeds_it_as_long_as_batches_end(rig: Rig) -> None:
    (work,) = rig.works
    work.idle = False

    def batch_ends() -> None:
        work.last_batch_ns = rig.now_ns - 1

    assert rig.fed_in(10 * PERIOD_NS, batch_ends) == 10 * LOOKS


def test_a_batch_that_never_ends_stops_it(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.run_for(PERIOD_NS)
    (work,) = rig.works
    work.idle = False
    work.last_batch_ns = rig.now_ns
    assert rig.fed_in(20 * PERIOD_NS) == 1, "the first look cannot know"
    assert rig.now_ns - rig.fed_ns[-1] >= PERIOD_NS
    assert caplog.text.count("the watchdog is not fed any more: lob: requests wait") == 1


def test_stalled_lane_stops_it_until_it_goes_on(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.run_for(PERIOD_NS)
    rig.stalled_lane = "the lane on core 3 has made no round for 1 s"
    assert rig.fed_in(5 * PERIOD_NS) == 0
    assert caplog.text.count("is not fed any more: the lane on core 3 has made no round") == 1
    rig.stalled_lane = ""
    assert rig.fed_in(PERIOD_NS) == LOOKS


def test_one_model_that_hangs_is_enough(rig: Rig) -> None:
    rig.works.append(Work(Backend()))
    rig.works[1].idle = False
    assert rig.fed_in(5 * PERIOD_NS) == 1


def test_a_slow_batch_that_ends_in_time_costs_nothing(rig: Rig) -> None:
    """Three looks long: one is missed after the first, and the next is in time."""
    (work,) = rig.works
    looks = 0

    def batch_ends_seldom() -> None:
        nonlocal looks
        looks += 1
        if looks % 3 == 0:
            work.last_batch_ns = rig.now_ns

    work.idle = False
    rig.run_for(20 * PERIOD_NS, batch_ends_seldom)
    pauses = np.diff([0, *rig.fed_ns])
    assert pauses.max() < PERIOD_NS


def test_ticks_that_do_not_come_stop_it(rig: Rig) -> None:
    rig.run_for(PERIOD_NS)
    rig.ticks_come = False
    assert rig.fed_in(5 * PERIOD_NS) == 0
    rig.ticks_come = True
    assert rig.fed_in(PERIOD_NS) >= 1


def test_a_ticker_that_believes_it_is_armed_stops_it(rig: Rig) -> None:
    """Such as a bug in it would leave it: timers run, and the work would never be looked at."""
    rig.run_for(PERIOD_NS)
    rig.soon.clear()
    # A state that no correct use leads to.
    rig.ticker._armed = True
    assert rig.fed_in(5 * PERIOD_NS) == 0


def test_a_loop_that_hangs_stops_it(rig: Rig) -> None:
    rig.run_for(PERIOD_NS)
    fed = len(rig.fed_ns)
    rig.now_ns += 5 * PERIOD_NS
    assert len(rig.fed_ns) == fed


def test_a_look_costs_the_ticks_in_between_nothing() -> None:
    """The poll of every other tick is the bare one."""
    rig = Rig(IdleStrategy.SPIN)
    # What a tick costs shows in which function it calls, not in what that does.
    bare = rig.ticker._round
    rig.ticker.interpose(lambda: None)
    assert rig.ticker._round is not bare
    for tick in (due := list(rig.soon)):
        rig.soon.remove(tick)
        tick()
    assert due
    assert rig.ticker._round == bare
    assert rig.polls == 1, "and the tick that was looked at polls too"


def test_a_model_without_requests_proves_that_it_could(rig: Rig) -> None:
    (work,) = rig.works
    rig.run_for(PERIOD_NS - LOOK_NS)
    assert work.backend.empty_batches == 0, "a batch has ended not long ago"
    rig.run_for(5 * LOOK_NS)
    assert work.backend.empty_batches == 5
    work.last_batch_ns = rig.now_ns
    rig.run_for(PERIOD_NS - LOOK_NS)
    assert work.backend.empty_batches == 5


def test_a_device_is_asked_not_to_grow_cold(rig: Rig) -> None:
    device = Device()
    rig.works = [Work(device)]
    assert rig.fed_in(2 * PERIOD_NS) == 2 * LOOKS
    assert device.warmed == LOOKS + 1


@pytest.mark.parametrize("backend", [Backend(), Device()], ids=["cpu", "gpu"])
def test_a_model_that_cannot_run_an_empty_batch_stops_it(
    rig: Rig, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend.failure = BackendFailed("the runtime is gone")
    rig.works = [Work(backend)]
    rig.run_for(PERIOD_NS - LOOK_NS)
    assert rig.fed_in(5 * PERIOD_NS) == 0
    assert caplog.text.count("lob: an empty batch failed: the runtime is gone") == 1
    backend.failure = None
    assert rig.fed_in(PERIOD_NS) == LOOKS, "it was no more than a moment"


def test_a_model_that_is_withdrawn_is_no_longer_looked_at(rig: Rig) -> None:
    rig.works[0].idle = False
    rig.run_for(PERIOD_NS)
    rig.works = [Work(Backend())]
    assert rig.fed_in(PERIOD_NS) == LOOKS


def test_unwatched_nothing_is_done() -> None:
    rig = Rig(watchdog_ns=0)
    assert rig.timers == []
    rig.watchdog.stop()


def test_it_ends(rig: Rig) -> None:
    rig.run_for(PERIOD_NS)
    rig.watchdog.stop()
    assert rig.timers == []


def test_looks_leave_nothing_to_the_garbage_collector(rig: Rig) -> None:
    """It is off while the daemon serves."""
    rig.run_for(PERIOD_NS)
    gc.collect()
    gc.disable()
    try:
        rig.run_for(50 * PERIOD_NS)
        assert gc.collect() == 0
    finally:
        gc.enable()
