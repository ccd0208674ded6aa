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
from collections.abc import Callable

from sigd.daemon.config.choices import IdleStrategy


class Ticker:
    """Calls `poll` once in each round of the loop, for as long as the strategy wants it.

    Args:
        poll: does what work there is, and says whether there was or is any.
        last_batch_ns: when the last batch ended, on `clock`.
        spin_ns: how long "backoff" spins after that.
        rest: called when "backoff" stops to spin; whoever has work then calls `wake()`.
        may_sleep: called before the tick stops: from then on what it polls must wake it. False where
            something has come meanwhile, and the tick goes on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        strategy: IdleStrategy,
        poll: Callable[[], bool],
        last_batch_ns: Callable[[], int],
        clock: Callable[[], int],
        spin_ns: int,
        rest: Callable[[], None],
        may_sleep: Callable[[], bool],
    ) -> None:
        self._call_soon = loop.call_soon
        self._strategy = strategy
        self._work = self._poll = poll
        self._last_batch_ns = last_batch_ns
        self._clock = clock
        self._spin_ns = spin_ns
        self._rest = rest
        self._may_sleep = may_sleep
        self._armed = False
        self._stopped = False
        self._tick_always, self._set_poll_always = self._make_tick_always()

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

    def interpose(self, call: Callable[[], None]) -> None:
        """Have the next tick call `call` before it polls: proof that ticks come, which costs the others
        nothing."""
        poll, set_poll = self._work, self._set_poll

        def poll_once() -> bool:
            set_poll(poll)
            call()
            return poll()

        set_poll(poll_once)
        self.wake()

    def _set_poll(self, poll: Callable[[], bool]) -> None:
        self._poll = poll
        self._set_poll_always(poll)

    def _make_tick_always(self) -> tuple[Callable[[], None], Callable[[Callable[[], bool]], None]]:
        """The tick of "spin", and what sets whom it polls.

        It runs in every round of the loop, so it is a closure: no attribute is looked up."""
        call_soon, poll = self._call_soon, self._poll

        def tick() -> None:
            if not self._stopped:
                # Armed before the poll: an error in a batch must not stop the ticking.
                call_soon(tick)
                poll()

        def set_poll(changed: Callable[[], bool]) -> None:
            nonlocal poll
            poll = changed

        return tick, set_poll

    def _tick(self) -> None:
        self._armed = False
        if self._stopped:
            return
        try:
            busy = self._poll()
        except BaseException:
            # Whoever waits for a batch is not waited for by anybody else.
            self.wake()
            raise
        if busy or self._spins():
            self.wake()
            return
        if self._strategy is IdleStrategy.BACKOFF:
            self._rest()
        if not self._may_sleep():
            self.wake()

    def _spins(self) -> bool:
        return (
            self._strategy is IdleStrategy.BACKOFF and self._clock() - self._last_batch_ns() < self._spin_ns
        )
