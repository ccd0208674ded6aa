"""What the loop does when there is nothing to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from sigd.daemon.config.choices import IdleStrategy
from sigd.daemon.runtime.ticker import Ticker

SPIN_NS = 1000


class Loop:
    """`call_soon` and rounds, the part of an event loop that a ticker uses."""

    def __init__(self, strategy: IdleStrategy) -> None:
        self.now_ns = 0
        self.last_batch_ns = 0
        self.work = 0
        self.broken = False
        self.polls = 0
        self.rests = 0
        self.sleeps = 0
        self.came_meanwhile = False
        self.soon: deque[Callable[[], object]] = deque()
        self.ticker = Ticker(
            self,  # type: ignore[arg-type]
            strategy,
            [self.poll],
            lambda: self.last_batch_ns,
            lambda: self.now_ns,
            SPIN_NS,
            self.rest,
            self.may_sleep,
        )

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def poll(self) -> bool:
        self.polls += 1
        if self.broken:
            raise RuntimeError("a bug in the batcher")
        if self.work == 0:
            return False
        self.work -= 1
        self.last_batch_ns = self.now_ns
        return True

    def rest(self) -> None:
        self.rests += 1

    def may_sleep(self) -> bool:
        self.sleeps += 1
        came, self.came_meanwhile = self.came_meanwhile, False
        return not came

    def round(self) -> bool:
        """One round of the loop; False where it would sleep."""
        callbacks = list(self.soon)
        self.soon.clear()
        for callback in callbacks:
            callback()
        return bool(callbacks)


@pytest.fixture(params=IdleStrategy, ids=lambda strategy: strategy.value)
def loop(request: pytest.FixtureRequest) -> Loop:
    return Loop(request.param)


def test_work_keeps_the_loop_awake_until_it_is_done(loop: Loop) -> None:
    loop.ticker.start()
    loop.now_ns = 10 * SPIN_NS
    loop.work = 5
    loop.ticker.wake()
    for _ in range(5):
        assert loop.round()
    assert loop.work == 0


def test_waking_twice_ticks_once(loop: Loop) -> None:
    loop.ticker.wake()
    loop.ticker.wake()
    assert len(loop.soon) == 1


def test_a_stopped_ticker_ticks_no_more(loop: Loop) -> None:
    loop.ticker.start()
    loop.ticker.wake()
    loop.ticker.stop()
    loop.work = 1
    while loop.round():
        pass
    loop.ticker.wake()
    assert not loop.round()
    assert loop.polls == 0


def test_an_error_in_a_batch_does_not_stop_the_ticking(loop: Loop) -> None:
    loop.ticker.start()
    loop.ticker.wake()
    loop.broken = True
    with pytest.raises(RuntimeError):
        loop.round()
    loop.broken = False
    loop.work = 2
    assert loop.round()
    assert loop.round()
    assert loop.work == 0


def test_spin_never_sleeps() -> None:
    loop = Loop(IdleStrategy.SPIN)
    loop.ticker.start()
    for _ in range(100):
        loop.now_ns += SPIN_NS
        assert loop.round()
    assert loop.polls == 100
    assert loop.sleeps == 0


def test_block_sleeps_as_soon_as_there_is_no_work() -> None:
    loop = Loop(IdleStrategy.BLOCK)
    loop.ticker.start()
    assert not loop.round()
    loop.work = 1
    loop.ticker.wake()
    assert loop.round()
    assert loop.round(), "one look whether more has come"
    assert not loop.round()
    assert loop.sleeps == 1
    assert loop.rests == 0, "there is no spinning that its sleep would end"


def test_backoff_spins_for_a_while_after_the_last_batch_then_sleeps() -> None:
    loop = Loop(IdleStrategy.BACKOFF)
    loop.now_ns = 50 * SPIN_NS
    loop.ticker.start()
    assert not loop.round(), "it starts asleep"
    loop.work = 1
    loop.ticker.wake()
    assert loop.round()
    loop.now_ns += SPIN_NS - 1
    for _ in range(10):
        assert loop.round()
    assert loop.rests == loop.sleeps == 0
    loop.now_ns += 1
    assert loop.round()
    assert not loop.round()
    assert loop.rests == loop.sleeps == 1
    loop.ticker.wake()
    assert loop.round(), "and wakes up again"


@pytest.mark.parametrize("strategy", [IdleStrategy.BACKOFF, IdleStrategy.BLOCK])
def test_what_came_just_before_it_slept_keeps_it_awake(strategy: IdleStrategy) -> None:
    loop = Loop(strategy)
    loop.now_ns = 50 * SPIN_NS
    loop.came_meanwhile = True
    loop.ticker.wake()
    assert loop.round()
    assert loop.round(), "one more look, at what came"
    assert not loop.round()
    assert loop.sleeps == 2


def test_a_call_between_two_polls_is_made_once_and_before_the_next(loop: Loop) -> None:
    calls = []
    loop.ticker.start()
    loop.ticker.interpose(lambda: calls.append(loop.polls))
    assert loop.round()
    for _ in range(3):
        loop.round()
    assert calls == [0]
    assert loop.polls >= 1, "the tick polled as ever"


def test_a_call_that_fails_does_not_stop_the_ticking_and_is_not_made_again(loop: Loop) -> None:
    def fail() -> None:
        raise RuntimeError("a bug in the watchdog")

    loop.ticker.start()
    loop.ticker.interpose(fail)
    with pytest.raises(RuntimeError):
        loop.round()
    loop.work = 2
    loop.ticker.wake()
    assert loop.round()
    assert loop.round()
    assert loop.work == 0


def test_of_two_calls_before_a_tick_the_last_counts(loop: Loop) -> None:
    calls: list[str] = []
    loop.ticker.interpose(lambda: calls.append("first"))
    loop.ticker.interpose(lambda: calls.append("second"))
    loop.ticker.wake()
    assert loop.round()
    loop.round()
    assert calls == ["second"]
