"""The daemon's side of `daemon.validation`: the process that validates model files, and sees that there is
one.

    python -m sigd.daemon.reload.validator CORES LOG_FORMAT TRUST

is how it is started again; standard input is its channel.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, NoReturn

from sigd.daemon.config.choices import LogFormat
from sigd.daemon.reload.validation import (
    MESSAGE_BYTES_MAX,
    TIMEOUT_S,
    Passed,
    Refused,
    Task,
    Validated,
    decode_verdict,
    encode,
    number_of,
    numbered,
    received,
    wait_for_tasks,
)
from sigd.daemon.runtime.child_process import (
    Restarts,
    how_it_ended,
    ignore_signals_to_the_daemon,
)
from sigd.daemon.runtime.cpu_affinity import leave_loop_core
from sigd.daemon.runtime.logs import start_logging
from sigd.daemon.runtime.process import set_process_name
from sigd.models.errors import ModelRefused
from sigd.models.trusted_file import demand_trust, trust_is_demanded

if TYPE_CHECKING:
    from sigd.daemon.runtime.child_process import Starter

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = TIMEOUT_S + 10.0
"""The process itself gives up a file after `TIMEOUT_S`: when that does not come either, the process hangs."""
_END_TIMEOUT_MS: Final = 2000
_NAME: Final = b"sigd-validator"
_TRUST: Final = "demanded"


class Validator:
    """A process at hand that validates one file at a time; from `watch()` on there is another one when it
    ends.

    The first is a fork of this one, so what it has loaded costs no memory of its own. It is to be started
    while there is
    one thread, and before anything is open that must not be shared: a GPU, or a socket that a client waits
    on. For the same reason those that follow are no forks.

    Attributes:
        running: it can be asked.
    """

    def __init__(self, starter: Starter, log_format: LogFormat) -> None:
        _import_runtimes()
        # What is garbage now would be copied when either process first collected it.
        gc.collect()
        gc.freeze()
        self._starter = starter
        self._log_format = log_format
        self.running = True
        self._number = 0
        self._answer: asyncio.Future[tuple[bytes, list[int]]] | None = None
        self._ended_how = ""
        self._restarts = Restarts(
            "the process that validates models", "until then reloads are refused", self._start_again
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            _be_validator(theirs, starter.cores)
        theirs.close()
        self._pidfd = os.pidfd_open(self._pid)
        self._restarts.started()

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._restarts.count

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on it can be asked, and is started again where it ends."""
        self._loop = loop
        self._channel.setblocking(False)
        loop.add_reader(self._channel, self._heard)
        loop.add_reader(self._pidfd, self._ended)

    async def validate(self, task: Task) -> Validated | None:
        """What the file is, once it has passed all checks; None where only this process can validate it.

        Raises:
            ModelRefused: it cannot be served, or there is no process to validate it.
        """
        if not self.running:
            raise self._without_it()
        self._number += 1
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._channel.send(numbered(self._number, encode(task)))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                message, descriptors = await self._answer
        except TimeoutError:
            os.kill(self._pid, signal.SIGKILL)
            raise ModelRefused(
                f"the process that validates models has not answered for {ANSWER_TIMEOUT_S:g} s, and another"
                " one is started"
            ) from None
        except OSError as error:
            raise ModelRefused(
                f"the process that validates models cannot be asked: {error.strerror}"
            ) from None
        finally:
            self._answer = None
        verdict = decode_verdict(message)
        if isinstance(verdict, Refused):
            raise ModelRefused(verdict.reason)
        if not isinstance(verdict, Passed):
            return None
        if not descriptors:
            raise ModelRefused(
                f"{os.fsdecode(task.path)}: it passed, but no open file was left to receive it with: raise"
                " LimitNOFILE in the"
                " unit, or lower connections_max"
            )
        return received(verdict, *descriptors)

    def close(self) -> None:
        """End it, whatever it does."""
        self._restarts.stop()
        if not self.running:
            return
        self._let_go()
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if not poller.poll(_END_TIMEOUT_MS):
            os.kill(self._pid, signal.SIGKILL)
        self._reap()

    # -- the process -------------------------------------------------------------------------------------

    def _heard(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_BYTES_MAX, 1)
        except ConnectionError:
            message, descriptors = b"", []
        if not message:
            # It has ended, or will now; that it has is told by its descriptor.
            assert self._loop is not None
            self._loop.remove_reader(self._channel)
            os.kill(self._pid, signal.SIGKILL)
            return
        number, verdict = number_of(message)
        if number == self._number and self._answer is not None and not self._answer.done():
            self._answer.set_result((verdict, descriptors))
            return
        # The client that asked has given up.
        for descriptor in descriptors:
            os.close(descriptor)

    def _ended(self) -> None:
        self._let_go()
        self._ended_how = how_it_ended(self._reap())
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._without_it())
        assert self._loop is not None
        self._restarts.ended(self._loop, self._ended_how)

    def _without_it(self) -> ModelRefused:
        return ModelRefused(
            f"the process that validates models {self._ended_how} and is started again: try it in a few"
            " seconds"
        )

    def _start_again(self) -> None:
        assert self._loop is not None
        self._start()
        self.watch(self._loop)

    def _start(self) -> None:
        arguments = [
            ",".join(map(str, sorted(self._starter.cores))),
            self._log_format.value,
            _TRUST if trust_is_demanded() else "",
        ]
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ExitStack() as failed:
            failed.enter_context(channel)
            self._process, self._pidfd = self._starter.start(__name__, arguments, theirs.fileno())
            failed.pop_all()
        self._channel, self._pid = channel, self._process.pid
        self._restarts.started()
        self.running = True

    def _let_go(self) -> None:
        """Nothing more is said to it, which ends it."""
        self.running = False
        if self._loop is not None:
            self._loop.remove_reader(self._channel)
            self._loop.remove_reader(self._pidfd)
        self._channel.close()

    def _reap(self) -> int:
        """Its exit code, or less than 0 for a signal."""
        os.close(self._pidfd)
        if self._process is None:
            return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._process.wait()


def _import_runtimes() -> None:
    """Once here, not once for each file, and not where memory may have become scarce."""
    import numpy.random  # noqa: F401  NumPy itself loads it when it is first used

    with suppress(ImportError):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401


def _be_validator(channel: socket.socket, cores: AbstractSet[int]) -> NoReturn:
    status = 1
    try:
        ignore_signals_to_the_daemon()
        _close_all_but(channel)
        set_process_name(_NAME)
        wait_for_tasks(channel, cores)
        status = 0
    except Exception:
        log.exception("the process that validates models")
    finally:
        os._exit(status)


def _close_all_but(channel: socket.socket) -> None:
    """Descriptors that this process inherited: it must keep no socket open that the daemon has closed."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    kept = {0, 1, 2, channel.fileno()}
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in kept:
            with suppress(OSError):
                os.close(descriptor)


def main(arguments: list[str]) -> NoReturn:
    """See the module."""
    cores = frozenset(map(int, arguments[0].split(",")))
    leave_loop_core(cores, idle_priority=True)
    start_logging(logging.INFO, LogFormat(arguments[1]), os.environ)
    if arguments[2] == _TRUST:
        demand_trust()
    _import_runtimes()
    _be_validator(socket.socket(fileno=os.dup(sys.stdin.fileno())), cores)


if __name__ == "__main__":
    main(sys.argv[1:])
