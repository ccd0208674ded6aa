"""Validating a model file in a process of its own, before it gets near the one that serves.

Parsing a model, warming it up and running its checks is Python, which in the serving process would hold the
lock that the loop needs; and a file that is no good may crash the runtime, or take all memory. So the daemon
keeps a process at hand, forked off before it served a client, which watches another one that validates and is
replaced after each file that did not pass. What passes comes back with the very bytes that were validated:
the file may be another one by the time the daemon loads it.
"""

from __future__ import annotations

import array
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
from typing import Any, Final, NoReturn

import msgspec

from sigd.daemon.reload.mapped_model import MappedModel, write_model
from sigd.daemon.runtime.child_process import prefer_oom_kill
from sigd.daemon.runtime.cpu_affinity import leave_loop_core
from sigd.daemon.runtime.process import die_with_parent, set_process_name
from sigd.models.backend import Backend
from sigd.models.errors import ModelError
from sigd.models.onnx.parts import OnnxParts
from sigd.models.reading import AS_IT_IS, ReadOptions
from sigd.models.registry import AUTO, backend_for, open_backend
from sigd.models.spec import ModelSpec
from sigd.models.zoo import default_model_path

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 300
"""A file that takes longer is refused."""
MESSAGE_BYTES_MAX: Final = 1 << 16
_REASON_CHARACTERS_MAX: Final = 4000
_TIMED_RUNS: Final = 3
_WORKER_NAME: Final = b"sigd-validating"
_NUMBER_BYTES: Final = 8


class Task(msgspec.Struct, frozen=True):
    """A file to validate; see `sigd.models.registry.BackendOptions`."""

    path: bytes
    backend: str
    batch_rows_max: int
    name: str
    intra_op_threads: int
    reading: ReadOptions = AS_IT_IS


class Passed(msgspec.Struct, frozen=True, tag=True):
    """It may be served. The descriptor for a `MappedModel` comes along.

    Attributes:
        run_ns: what its largest batch takes.
        backend: what is to run it. For the native kernels the graph is their plan.
    """

    spec: ModelSpec
    graph_bytes: int
    weights_bytes: int
    run_ns: int
    backend: str = "onnxruntime"


class NotHere(msgspec.Struct, frozen=True, tag=True):
    """It is for a backend whose device or memory is the daemon's: to be validated there."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It cannot be served."""

    reason: str


Verdict = Passed | NotHere | Refused


@dataclass(frozen=True, slots=True)
class Validated:
    """A model that passed, ready to be loaded."""

    spec: ModelSpec
    model: MappedModel
    run_ns: int
    backend: str


def encode(message: msgspec.Struct) -> bytes:
    """A message as it goes from one process to the other."""
    return msgspec.msgpack.encode(message, enc_hook=lambda path: os.fsencode(path))


def decode_verdict(message: bytes) -> Verdict:
    """The verdict that `encode` made a message of."""
    verdict: Verdict = msgspec.msgpack.decode(message, type=Verdict, dec_hook=_path)
    return verdict


def _path(kind: type, value: Any) -> Path:
    assert kind is Path
    return Path(os.fsdecode(value))


def numbered(number: int, message: bytes) -> bytes:
    """What goes through the channel: an answer has the number of its task, or it would be taken for the next
    one's."""
    return number.to_bytes(_NUMBER_BYTES) + message


def number_of(message: bytes) -> tuple[int, bytes]:
    """The task's number, and the message without it."""
    return int.from_bytes(message[:_NUMBER_BYTES]), message[_NUMBER_BYTES:]


def received(passed: Passed, descriptor: int) -> Validated:
    """The model whose bytes lie behind that descriptor."""
    model = MappedModel(descriptor, passed.graph_bytes, passed.weights_bytes)
    return Validated(passed.spec, model, passed.run_ns, passed.backend)


# -- the process that is kept at hand
# --------------------------------------------------------------------------


def wait_for_tasks(channel: socket.socket, cores: AbstractSet[int]) -> None:
    """Examine what comes through `channel` until its other end is closed, which ends what is under way."""
    leave_loop_core(cores, idle_priority=True)
    prewarm()
    worker: _Worker | None = None
    while message := channel.recv(MESSAGE_BYTES_MAX):
        if worker is None or not worker.waits():
            worker = _Worker(channel)
        reason = worker.validate(message)
        if reason:
            number, _ = number_of(message)
            # A daemon that has ended meanwhile takes no answer, and the next message is the end of them.
            with suppress(BrokenPipeError):
                channel.send(numbered(number, encode(Refused(reason))))
    if worker is not None and worker.waits():
        worker.end()


def prewarm() -> None:
    """What is loaded with the first file is loaded now, not for each file anew: that is three quarters of the
    time. The log says nothing of it: the daemon does not serve that file."""
    logging.disable(logging.INFO)
    with suppress(FileNotFoundError):
        _, descriptor = validate(Task(os.fsencode(default_model_path()), AUTO, 1, "practice", 1))
        # Where memory is short there is none, and the first file has to wait for what was to be loaded here.
        if descriptor >= 0:
            os.close(descriptor)
    logging.disable(logging.NOTSET)


class _Worker:
    """A process that validates one file after the other until one does not pass: what that has left behind
    ends with it.

    One for each file would spend two thirds of its time on its own copy of all that the validating touches.

    Args:
        channel: where its verdicts go.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._tasks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self._tasks.close()
            _validate_until_one_fails(channel, theirs)
        theirs.close()
        self._pid: int | None = pid

    def waits(self) -> bool:
        """Whether it waits for a file; one that has ended meanwhile is given up."""
        if self._pid is not None and select.select([self._tasks], [], [], 0)[0]:
            self.end()
        return self._pid is not None

    def validate(self, message: bytes) -> str:
        """Have a file validated; "" where the verdict has been given, else why it was not."""
        reason = ""
        # One that ends meanwhile may break the connection in either direction; its status says how it ended.
        with suppress(ConnectionError):
            self._tasks.send(message)
            reason = watch_worker(self._tasks, self._channel)
            if not reason and self._tasks.recv(1):
                return ""
        status = self.end()
        if status and not reason:
            reason = f"the process that validated it {how_worker_ended(status)}"
        return reason

    def end(self) -> int:
        """Kill it at once; the status of os.waitpid, which is its own where it had ended."""
        assert self._pid is not None
        self._tasks.close()
        pid, self._pid = self._pid, None
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]


def watch_worker(worker: socket.socket, channel: socket.socket) -> str:
    """Wait until a worker is done with a file or has ended; why it must be ended, "" where it need not."""
    poller = select.poll()
    poller.register(worker, select.POLLIN)
    poller.register(channel, select.POLLHUP)
    events = dict(poller.poll(TIMEOUT_S * 1000))
    if worker.fileno() in events:
        return ""
    return "the daemon has ended" if events else f"validating it took longer than {TIMEOUT_S} s"


def how_worker_ended(status: int) -> str:
    """In words, from the status of os.waitpid."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = ": out of memory?" if number == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(number).name}{hint}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"


# -- the process that validates
# ---------------------------------------------------------------------------------


def _validate_until_one_fails(channel: socket.socket, tasks: socket.socket) -> NoReturn:
    status = 1
    try:
        # Where the process that watches this one is killed, nothing would end it.
        die_with_parent()
        set_process_name(_WORKER_NAME)
        prefer_oom_kill()
        while _validate_next(channel, tasks.recv(MESSAGE_BYTES_MAX)):
            tasks.send(b"\0")
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def _validate_next(channel: socket.socket, message: bytes) -> bool:
    """Answer with the verdict; whether the file passed."""
    number, task = number_of(message)
    verdict: Verdict
    try:
        verdict, descriptor = validate(msgspec.msgpack.decode(task, type=Task))
    except Exception as error:  # noqa: BLE001  whatever it was, the daemon is waiting
        verdict, descriptor = Refused(brief(f"{type(error).__name__}: {error}")), -1
    _answer(channel, number, verdict, descriptor)
    if descriptor >= 0:
        os.close(descriptor)
    return not isinstance(verdict, Refused)


def validate(task: Task) -> tuple[Verdict, int]:
    """Open the file as the daemon would, and close it again; the verdict and the descriptor that goes with
    it, or -1."""
    path = Path(os.fsdecode(task.path))
    try:
        if backend_for(path, task.backend) != "onnxruntime":
            return NotHere(), -1
        backend = open_backend(
            path, task.backend, task.batch_rows_max, task.name, task.intra_op_threads, reading=task.reading
        )
        run_ns = _run_ns(backend)
        backend.close()
        parts = _parts(backend)
        descriptor = write_model(parts)
    except ModelError as error:
        return Refused(brief(str(error))), -1
    except MemoryError:
        return Refused(f"{path}: out of memory"), -1
    return Passed(backend.spec, len(parts.graph), len(parts.weights), run_ns, backend.name), descriptor


def _parts(backend: Backend) -> OnnxParts:
    """What the daemon loads: the model, or its native plan."""
    from sigd.models.native.backend import NativeBackend
    from sigd.models.onnxrt import onnx_parts

    if isinstance(backend, NativeBackend):
        return OnnxParts(backend.plan(), b"")
    return onnx_parts(backend.spec)


def _run_ns(backend: Backend) -> int:
    """What the largest batch takes, once it is warm."""
    taken = []
    for _ in range(_TIMED_RUNS):
        start_ns = monotonic_ns()
        backend.submit(backend.batch_rows_max)
        taken.append(monotonic_ns() - start_ns)
    return min(taken)


def brief(reason: str) -> str:
    """As much of a reason as fits a message."""
    return reason[:_REASON_CHARACTERS_MAX]


def _answer(channel: socket.socket, number: int, verdict: Verdict, descriptor: int) -> None:
    rights = (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))] if descriptor >= 0 else []
    )
    channel.sendmsg([numbered(number, encode(verdict))], rights)
