"""Processes that work beside the loop: started where they may run, and started again when they end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

from sigd.daemon.runtime.cpu_affinity import leave_loop_core

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

PAUSE_S: Final = 1.0
PAUSE_S_MAX: Final = 60.0
_OUT_OF_MEMORY_FIRST: Final = "500"


class Starter:
    """Starts processes from a thread that has stepped aside, for they begin with what their parent thread
    has.

    From the loop's they would have its core and its real-time priority until Python runs and they can give
    them up: the loop would wait for tens of milliseconds. The thread lives as long as this does, since a
    process that wants to end with its parent (`die_with_parent`) ends with the thread.

    Args:
        cores: where they may run.
    """

    def __init__(self, cores: AbstractSet[int]) -> None:
        self.cores = cores
        self._thread = ThreadPoolExecutor(1, "sigd-starter", leave_loop_core, (cores,))

    def start(
        self, module: str, arguments: Sequence[str], stdin: int, pass_fds: Sequence[int] = ()
    ) -> tuple[subprocess.Popen[bytes], int]:
        """Run that module of sigd in a process; back when it has begun, after a millisecond or two. Raises
        OSError.

        The descriptor can be read once it has ended. It is there from the beginning: when the end comes,
        there may be none to be had.
        """
        process = self._thread.submit(
            lambda: subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        ).result()
        try:
            return process, os.pidfd_open(process.pid)
        except OSError:
            with process:
                process.kill()
            raise


def how_it_ended(code: int) -> str:
    """In words, from `subprocess.Popen.returncode`."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


class Pauses:
    """Before a process that has ended is started again: each pause is twice the one before, until a process
    has run for as long as the longest."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._next_s = PAUSE_S
        self._started_s = inf

    def started(self) -> None:
        """A process has been started."""
        self._started_s = self._clock()

    def next_s(self) -> float:
        """It has ended, or could not be started: how long to wait now."""
        if self._clock() - self._started_s >= PAUSE_S_MAX:
            self._next_s = PAUSE_S
        self._started_s = inf
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, PAUSE_S_MAX)
        return pause_s


class Restarts:
    """Starts a child process again when it has ended: the one policy, see `Pauses`, of all of them.

    Args:
        what: the process in words, for the log.
        meanwhile: what its absence means, for the log.
        start: starts it and watches it; called on the loop. Raises OSError where it cannot be started.

    Attributes:
        count: how often it was to be started again.
    """

    def __init__(
        self, what: str, meanwhile: str, start: Callable[[], None], pauses: Pauses | None = None
    ) -> None:
        self._what = what
        self._meanwhile = meanwhile
        self._start = start
        self._pauses = pauses or Pauses()
        self._timer: asyncio.TimerHandle | None = None
        self.count = 0

    def started(self) -> None:
        """It runs."""
        self._pauses.started()

    def ended(self, loop: asyncio.AbstractEventLoop, how: str) -> float:
        """It has ended: it is started again after as many seconds as are returned. `how`: for the log."""
        pause_s = self._pauses.next_s()
        log.error("%s %s and is started again in %g s; %s", self._what, how, pause_s, self._meanwhile)
        self._timer = loop.call_later(pause_s, self._start_again, loop)
        return pause_s

    def stop(self) -> None:
        """It is not started any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _start_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self.count += 1
        try:
            self._start()
        except OSError as error:
            self.ended(loop, f"cannot be started: {error},")


def ignore_signals_to_the_daemon() -> None:
    """A terminal and a service manager send them to all processes alike: this one ends with the daemon."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def prefer_oom_kill() -> None:
    """Have the kernel end this process first where memory runs out, as far as it may ask for that."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_FIRST)
