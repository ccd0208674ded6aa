"""Examining a model file in a process of its own, before it gets near the one that serves.

Parsing a model, warming it up and running its checks is Python, which in the serving process would hold the lock that
the loop needs; and a file that is no good may crash the runtime, or take all memory. So the daemon keeps a process at
hand, forked off before it served anybody, that forks once more for each file. What passes comes back with the very
bytes that were examined: the file may be another one by the time the daemon loads it.
"""

from __future__ import annotations

import array
import ctypes
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

import msgspec

from sigd.daemon.mapped_model import MappedModel, write_model
from sigd.daemon.placement import step_aside
from sigd.models.backend import Backend
from sigd.models.errors import ModelError
from sigd.models.registry import AUTO, backend_for, open_backend
from sigd.models.spec import ModelSpec
from sigd.models.zoo import default_model_path

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 300
"""A file that takes longer is refused."""
MESSAGE_BYTES_MAX: Final = 1 << 16
_REASON_CHARACTERS_MAX: Final = 4000
_OUT_OF_MEMORY_FIRST: Final = "500"
_TIMED_RUNS: Final = 3
_PR_SET_PDEATHSIG: Final = 1
_NUMBER_BYTES: Final = 8


class Task(msgspec.Struct, frozen=True):
    """A file to examine; see `sigd.models.registry.BackendOptions`."""

    path: bytes
    backend: str
    batch_rows_max: int
    name: str
    intra_op_threads: int


class Passed(msgspec.Struct, frozen=True, tag=True):
    """It may be served. The descriptor for a `MappedModel` comes along.

    Attributes:
        run_ns: what its largest batch takes.
    """

    spec: ModelSpec
    graph_bytes: int
    weights_bytes: int
    run_ns: int


class NotHere(msgspec.Struct, frozen=True, tag=True):
    """It is for a backend whose device or memory is the daemon's: to be examined there."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It cannot be served."""

    reason: str


Verdict = Passed | NotHere | Refused


@dataclass(frozen=True, slots=True)
class Examined:
    """A model that passed, ready to be loaded."""

    spec: ModelSpec
    model: MappedModel
    run_ns: int


def encode(message: msgspec.Struct) -> bytes:
    """A message as it goes from one process to the other."""
    return msgspec.msgpack.encode(message, enc_hook=lambda path: os.fsencode(path))


def decode_verdict(message: bytes) -> Verdict:
    """The other way round."""
    verdict: Verdict = msgspec.msgpack.decode(message, type=Verdict, dec_hook=_path)
    return verdict


def _path(kind: type, value: Any) -> Path:
    assert kind is Path
    return Path(os.fsdecode(value))


def numbered(number: int, message: bytes) -> bytes:
    """What goes through the channel: an answer has the number of its task, or it would be taken for the next one's."""
    return number.to_bytes(_NUMBER_BYTES) + message


def number_of(message: bytes) -> tuple[int, bytes]:
    """The other way round."""
    return int.from_bytes(message[:_NUMBER_BYTES]), message[_NUMBER_BYTES:]


def received(passed: Passed, descriptor: int) -> Examined:
    """The model whose bytes lie behind that descriptor."""
    model = MappedModel(descriptor, passed.graph_bytes, passed.weights_bytes)
    return Examined(passed.spec, model, passed.run_ns)


# -- the process that is kept at hand --------------------------------------------------------------------------


def wait_for_tasks(channel: socket.socket, cores: AbstractSet[int]) -> None:
    """Examine what comes through `channel` until its other end is closed, which ends what is under way."""
    step_aside(cores, in_no_hurry=True)
    _practise()
    while message := channel.recv(MESSAGE_BYTES_MAX):
        number, task = number_of(message)
        child = os.fork()
        if child == 0:
            _examine_and_end(channel, number, task)
        ended = os.pidfd_open(child)
        reason = _watch(ended, channel)
        if reason:
            os.kill(child, signal.SIGKILL)
        os.close(ended)
        _, status = os.waitpid(child, 0)
        if status and not reason:
            reason = f"the process that examined it {_ended_how(status)}"
        if reason:
            # A daemon that has ended meanwhile takes no answer, and the next message is the end of them.
            with suppress(BrokenPipeError):
                channel.send(numbered(number, encode(Refused(reason))))


def _practise() -> None:
    """What is loaded with the first file is loaded now, not for each file anew: that is three quarters of the time."""
    with suppress(FileNotFoundError):
        _, descriptor = examine(Task(os.fsencode(default_model_path()), AUTO, 1, "practice", 1))
        # Where memory is short there is none, and the first file has to wait for what was to be loaded here.
        if descriptor >= 0:
            os.close(descriptor)


def _watch(ended: int, channel: socket.socket) -> str:
    """Wait for the end of a process; why it must be ended, "" where it has by itself."""
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    poller.register(channel, select.POLLHUP)
    events = dict(poller.poll(TIMEOUT_S * 1000))
    if ended in events:
        return ""
    return "the daemon has ended" if events else f"examining it took longer than {TIMEOUT_S} s"


def _ended_how(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = ": out of memory?" if number == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(number).name}{hint}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"


# -- the process for one file ----------------------------------------------------------------------------------


def _examine_and_end(channel: socket.socket, number: int, task: bytes) -> None:
    status = 1
    try:
        # Where the process that watches this one is killed, nobody would end it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_FIRST)
        _answer(channel, number, *examine(msgspec.msgpack.decode(task, type=Task)))
        status = 0
    except Exception as error:  # noqa: BLE001  whatever it was, the daemon is waiting
        _answer(channel, number, Refused(_brief(f"{type(error).__name__}: {error}")), -1)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def examine(task: Task) -> tuple[Verdict, int]:
    """Open the file as the daemon would, and close it again; the verdict and the descriptor that goes with it, or -1."""
    path = Path(os.fsdecode(task.path))
    try:
        if backend_for(path, task.backend) != "onnxruntime":
            return NotHere(), -1
        backend = open_backend(path, task.backend, task.batch_rows_max, task.name, task.intra_op_threads)
        run_ns = _run_ns(backend)
        from sigd.models.onnxrt import onnx_parts

        parts = onnx_parts(backend.spec)
        descriptor = write_model(parts)
    except ModelError as error:
        return Refused(_brief(str(error))), -1
    except MemoryError:
        return Refused(f"{path}: out of memory"), -1
    return Passed(backend.spec, len(parts.graph), len(parts.weights), run_ns), descriptor


def _run_ns(backend: Backend) -> int:
    """What the largest batch takes, once it is warm."""
    taken = []
    for _ in range(_TIMED_RUNS):
        start_ns = monotonic_ns()
        backend.submit(backend.batch_rows_max)
        taken.append(monotonic_ns() - start_ns)
    return min(taken)


def _brief(reason: str) -> str:
    return reason[:_REASON_CHARACTERS_MAX]


def _answer(channel: socket.socket, number: int, verdict: Verdict, descriptor: int) -> None:
    rights = (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))] if descriptor >= 0 else []
    )
    channel.sendmsg([numbered(number, encode(verdict))], rights)
