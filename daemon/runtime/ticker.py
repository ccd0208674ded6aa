"""What the loop does when there is nothing to do, named as Aeron names it, and the tick that polls for work.

    spin     the loop never sleeps; for an isolated core
    backoff  it spins for a while after the last batch, then sleeps until the kernel wakes it
    block    it always sleeps

While the tick is armed the loop polls its sockets without sleeping, and the tick polls what has no descriptor
(the rings of shared memory, the completion of a batch on a device). Work that waits for a batch keeps it
armed under every strategy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from sigd.daemon.config.choices import IdleStrategy


class Ticker:
    """Calls all of `polls` once in each round of the loop, for as long as the strategy wants it.

    Args:
        polls: each does what work there is, and says whether there was or is any; in this order.
        last_batch_ns: when the last batch ended, on `clock`.
        spin_ns: how long "backoff" spins after that.
        before_sleep: called when "backoff" stops to spin; what has work for it afterwards calls `wake()`.
        may_sleep: called before the tick stops: from then on what it polls must wake it. False where
            something has come meanwhile, and the tick goes on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        strategy: IdleStrategy,
        polls: Sequence[Callable[[], bool]],
        last_batch_ns: Callable[[], int],
        clock: Callable[[], int],
        spin_ns: int,
        before_sleep: Callable[[], None],
        may_sleep: Callable[[], bool],
    ) -> None:
        self._call_soon = loop.call_soon
        self._strategy = strategy
        self._polls = self._round = tuple(polls)
        self._last_batch_ns = last_batch_ns
        self._clock = clock
        self._spin_ns = spin_ns
        self._before_sleep = before_sleep
        self._may_sleep = may_sleep
        self._armed = False
        self._stopped = False

    def start(self) -> None:
        """Arm the tick where the strategy wants it always."""
        if self._strategy is IdleStrategy.SPIN:
            self.wake()

    def stop(self) -> None:
        """Tick no more."""
        self._stopped = True

    def wake(self) -> None:
        """There is work: poll in the next round."""
        if not self._armed and not self._stopped:
            self._armed = True
            self._call_soon(self._tick_always if self._strategy is IdleStrategy.SPIN else self._tick)

    def set_polls(self, polls: Sequence[Callable[[], bool]]) -> None:
        """Poll these from the next round on."""
        waits = self._round is not self._polls
        self._polls = tuple(polls)
        self._round = (self._round[0], *self._polls) if waits else self._polls

    def interpose(self, call: Callable[[], None]) -> None:
        """Have the next tick call `call` before it polls: proof that ticks come, which costs the others
        nothing."""

        def call_once() -> bool:
            self._round = self._polls
            call()
            return False

        self._round = (call_once, *self._polls)
        self.wake()

    def _tick_always(self) -> None:
        """The tick of "spin"."""
        if not self._stopped:
            # Armed before the polls: an error in a batch must not stop the ticking.
            self._call_soon(self._tick_always)
            for poll in self._round:
                poll()

    def _tick(self) -> None:
        self._armed = False
        if self._stopped:
            return
        try:
            busy = False
            for poll in self._round:
                if poll():
                    busy = True
        except BaseException:
            # A session that waits for a batch does not wake the tick again.
            self.wake()
            raise
        if busy or self._spins():
            self.wake()
            return
        if self._strategy is IdleStrategy.BACKOFF:
            self._before_sleep()
        if not self._may_sleep():
            self.wake()

    def _spins(self) -> bool:
        return (
            self._strategy is IdleStrategy.BACKOFF and self._clock() - self._last_batch_ns() < self._spin_ns
        )
