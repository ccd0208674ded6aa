"""Empty batches for a device that grows slow when it idles: a timer beside the loop's work, off unless asked
for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from sigd.models.backend import Backend, KeepsWarm
from sigd.models.errors import BackendFailed

log = logging.getLogger(__name__)


class Idler(Protocol):
    """Knows what runs, and whether nothing runs and nothing waits."""

    @property
    def backend(self) -> Backend: ...

    @property
    def idle(self) -> bool: ...


class KeepWarm:
    """Lets every backend that can keep its device warm do so, again and again where nothing runs.

    Args:
        works: the models that are served.
        interval_s: how often it is asked, and decides itself whether it is time; 0 is never.
        on_fatal: called where the device failed for good.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        works: Iterable[Idler],
        interval_s: float,
        on_fatal: Callable[[BackendFailed], None],
    ) -> None:
        self._loop = loop
        self._works = works
        self._interval_s = interval_s
        self._on_fatal = on_fatal
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, if it is asked for."""
        if self._interval_s:
            self._timer = self._loop.call_later(self._interval_s, self._warm)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _warm(self) -> None:
        try:
            for work in self._works:
                # Another model may have taken over since the last time.
                if work.idle and isinstance(work.backend, KeepsWarm):
                    work.backend.keep_warm()
        except BackendFailed as failure:
            log.error("keeping the device warm failed: %s", failure)
            if failure.fatal:
                self._on_fatal(failure)
                return
        self.start()
