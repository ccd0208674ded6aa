"""Whether the daemon is alive in the sense that counts: ticks come, and what is submitted finishes.

A watchdog that is fed by a timer alone would only prove that timers run. Here each look goes through a tick
of the hot loop, judges the work of every model, and only then tells the service manager. What hangs the loop,
stops the ticks or leaves a batch unfinished ends the telling, and the service manager ends the daemon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from sigd.daemon.runtime.sd_notify import Notifier
from sigd.models.backend import Backend, KeepsWarm

log = logging.getLogger(__name__)

LOOKS: Final = 4
"""Looks in each watchdog period: one that finds a batch half done, or is late itself, costs nothing yet."""


class Work(Protocol):
    """The batches of one model."""

    name: str
    backend: Backend
    last_batch_ns: int

    @property
    def idle(self) -> bool:
        """True where nothing waits and nothing runs."""


class LivenessCheck:
    """Judges progress from one look to the next. No I/O, and no time but that of `clock`.

    Args:
        rest_ns: a model that has had no batch for so long runs an empty one, to prove that it still can.
    """

    def __init__(self, clock: Callable[[], int], rest_ns: int) -> None:
        self._clock = clock
        self._rest_ns = rest_ns
        self._seen: dict[Work, tuple[bool, int]] = {}

    def look(self, works: Iterable[Work]) -> str:
        """What has made no progress since the last look, as a sentence; "" where all is well."""
        seen, self._seen = self._seen, {}
        stalled = ""
        for work in works:
            now = (work.idle, work.last_batch_ns)
            self._seen[work] = now
            if not now[0]:
                if seen.get(work) == now:
                    waited_s = (self._clock() - work.last_batch_ns) / 1e9
                    stalled = f"{work.name}: requests wait, and no batch has ended for {waited_s:.1f} s"
            elif self._clock() - work.last_batch_ns >= self._rest_ns:
                stalled = _run_empty(work) or stalled
        return stalled


class Watchdog:
    """Looks in time and tells the service manager, where it asked for that.

    Args:
        interpose: has the next tick of the hot loop call something.
        works: the models that are served.
        status: the line that is told along.
        lanes: what is wrong with a lane, as a sentence; "" where nothing is.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        notifier: Notifier,
        liveness_check: LivenessCheck,
        interpose: Callable[[Callable[[], None]], None],
        works: Callable[[], Iterable[Work]],
        status: Callable[[], str],
        lanes: Callable[[], str],
    ) -> None:
        self._loop = loop
        self._notifier = notifier
        self._liveness_check = liveness_check
        self._interpose = interpose
        self._works = works
        self._status = status
        self._lanes = lanes
        self._interval_s = notifier.watchdog_ns / LOOKS / 1e9
        self._timer: asyncio.TimerHandle | None = None
        self._stalled = ""

    def start(self) -> None:
        """Begin, if the service manager waits for it."""
        if self._interval_s:
            self._arm()

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._interval_s, self._ask)

    def _ask(self) -> None:
        self._arm()
        self._interpose(self._in_tick)

    def _in_tick(self) -> None:
        stalled = self._liveness_check.look(self._works()) or self._lanes()
        if not stalled:
            self._notifier.alive(self._status())
        elif not self._stalled:
            log.error("the watchdog is not fed any more: %s", stalled)
        self._stalled = stalled


def _run_empty(work: Work) -> str:
    """Run a batch without a request; what went wrong, "" where nothing did.

    On a CPU it is over when this returns. A device is asked not to grow cold, and is not waited for.
    """
    backend = work.backend
    try:
        if backend.synchronous:
            backend.inputs[:1] = 0
            backend.bare_call(1)()
        elif isinstance(backend, KeepsWarm):
            backend.keep_warm()
    except Exception as error:  # noqa: BLE001  a bare call raises the runtime's own errors
        return f"{work.name}: an empty batch failed: {error}"
    return ""
