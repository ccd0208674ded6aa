"""The daemon's side of `daemon.examination`: the process that examines model files, started before anybody is served."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import select
import signal
import socket
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Final, NoReturn

from sigd.daemon.examination import (
    MESSAGE_BYTES_MAX,
    Examined,
    NotHere,
    Refused,
    Task,
    decode_verdict,
    encode,
    received,
    wait_for_tasks,
)
from sigd.models.errors import ModelRefused

log = logging.getLogger(__name__)

_END_TIMEOUT_MS: Final = 2000
_PR_SET_NAME: Final = 15
_NAME: Final = b"sigd-examiner"


class Examiner:
    """A process at hand that examines one file at a time.

    It is a fork of this one, so what it has loaded costs no memory of its own. It is to be started while there is one
    thread, and before anything is open that must not be shared: a GPU, or a socket that somebody waits on.

    Args:
        cores: where it may run.
    """

    def __init__(self, cores: AbstractSet[int]) -> None:
        _import_runtimes()
        # What is garbage now would be copied when either process first collected it.
        gc.collect()
        gc.freeze()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            _be_examiner(theirs, cores)
        theirs.close()
        self._channel.setblocking(False)

    async def examine(self, task: Task) -> Examined | None:
        """What the file is, once it has passed all checks; None where only this process can examine it.

        Raises:
            ModelRefused: it cannot be served.
        """
        loop = asyncio.get_running_loop()
        there = loop.create_future()
        loop.add_reader(self._channel, _settle, there)
        try:
            self._channel.send(encode(task))
            await there
            message, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_BYTES_MAX, 1)
        except OSError:
            message, descriptors = b"", []
        finally:
            loop.remove_reader(self._channel)
        if not message:
            raise ModelRefused(
                "the process that examines models has ended, and is started with the daemon only: start the daemon again"
            )
        verdict = decode_verdict(message)
        if isinstance(verdict, Refused):
            raise ModelRefused(verdict.reason)
        return None if isinstance(verdict, NotHere) else received(verdict, *descriptors)

    def close(self) -> None:
        """End it, whatever it does."""
        self._channel.close()
        ended = os.pidfd_open(self._pid)
        poller = select.poll()
        poller.register(ended, select.POLLIN)
        if not poller.poll(_END_TIMEOUT_MS):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(ended)


def _settle(there: asyncio.Future[None]) -> None:
    if not there.done():
        there.set_result(None)


def _import_runtimes() -> None:
    """Once here, not once for each file."""
    with suppress(ImportError):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401


def _be_examiner(channel: socket.socket, cores: AbstractSet[int]) -> NoReturn:
    status = 1
    try:
        # A terminal and a service manager send them to all processes alike: this one ends with the daemon.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _close_all_but(channel)
        ctypes.CDLL(None).prctl(_PR_SET_NAME, _NAME)
        wait_for_tasks(channel, cores)
        status = 0
    except Exception:
        log.exception("the process that examines models")
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
