"""Work that takes long and needs Python's lock for little of it, on a thread of its own beside the loop."""

from __future__ import annotations

import _thread
import asyncio
import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import TypeVar

from sigd.daemon.runtime.cpu_affinity import leave_loop_core
from sigd.models.errors import ModelError, ModelRefused

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Loader:
    """Runs one piece of work at a time, on a thread that exists only meanwhile.

    Args:
        cores: where.

    Attributes:
        busy: a piece of work has not ended; the process may not wait for it when it ends.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, cores: AbstractSet[int]) -> None:
        self._loop = loop
        self._cores = cores
        self.busy = False

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns.

        Raises:
            ModelError: `work` did, or ModelRefused in place of any other exception.
        """
        self.busy = True
        done: asyncio.Future[Result | ModelError] = self._loop.create_future()
        # threading.Thread.start() would have the loop wait until the thread runs.
        _thread.start_new_thread(self._work, (work, done))
        try:
            return _result_of(await done)
        finally:
            # Or an error would hold this frame, which holds the error, and no collector runs here.
            del done

    def _work(self, work: Callable[[], Result], done: asyncio.Future[Result | ModelError]) -> None:
        leave_loop_core(self._cores)
        outcome: Result | ModelError
        try:
            outcome = work()
        except ModelError as error:
            outcome = _bare(error)
        except MemoryError:
            outcome = ModelRefused("out of memory")
        except Exception as error:
            log.exception("loading a model")
            outcome = ModelRefused(f"{type(error).__name__}: {error}")
        # A loop that is closed has no task waiting any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, done, outcome)

    def _end(self, done: asyncio.Future[Result | ModelError], outcome: Result | ModelError) -> None:
        self.busy = False
        if not done.done():
            done.set_result(outcome)


def _result_of(outcome: Result | ModelError) -> Result:
    try:
        if isinstance(outcome, ModelError):
            raise outcome
        return outcome
    finally:
        del outcome


def _bare(error: ModelError) -> ModelError:
    """Without its frames, which hold what was being loaded."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
