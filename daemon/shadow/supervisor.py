"""The daemon's side of its shadows: makes their memory, starts their processes and sees that they run."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.recording.ring import Ring
from sigd.daemon.recording.tap import Taps
from sigd.daemon.runtime.child_process import Restarts, how_it_ended
from sigd.daemon.shadow.memory import RING_BYTES, make_memory, map_board, map_ring
from sigd.daemon.shadow.messages import MESSAGE_BYTES_MAX, Opened, Refused, Said, Task, decode_said, encode
from sigd.daemon.shadow.statistics import Board
from sigd.daemon.shadow.status import ShadowStatus
from sigd.models.backend import OnGpu
from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.registry import backend_for, backend_names
from sigd.models.trusted_file import trust_is_demanded

if TYPE_CHECKING:
    from sigd.daemon.config.config import Config
    from sigd.daemon.config.models import ModelConfig, ShadowTable
    from sigd.daemon.runtime.child_process import Starter
    from sigd.models.backend import Backend

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S: Final = 300.0
"""What takes longer to open is refused, as a model that is to be served is."""
END_TIMEOUT_S: Final = 5.0
"""A process that has closed its channel ends by itself; what takes longer, in a driver perhaps, is killed."""


class Shadow:
    """The shadow of one model, from `start()` to `close()`.

    Attributes:
        name: of the model that is served.
        taps: make what hands its answers on.
    """

    def __init__(self, name: str, task: Task, starter: Starter) -> None:
        """
        Raises:
            MissingDependency: no memory for the ring.
        """
        self.name = name
        self._task = task
        self._starter = starter
        self._path = os.fsdecode(task.path)
        try:
            self._memory = make_memory()
        except OSError as error:
            raise MissingDependency(
                f"{self._path}: no {RING_BYTES >> 20} MiB of memory for the rows that the shadow of {name} is"
                " to run"
                f" ({error.strerror})"
            ) from None
        self._ring = Ring(*map_ring(self._memory))
        self._board = Board(map_board(self._memory))
        self.taps = Taps(self._ring)
        self._opened = Opened("", "")
        self._running = False
        self._restarts = Restarts(
            f"the process of the shadow of {name}", "serving does not depend on it", self._start_again
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pidfd = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def start(self) -> None:
        """Start the process; `wait_until_open()` follows. Raises OSError."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # It waits there for a process, which may have ended by the time that it could be sent.
            self._channel.send(encode(self._task))
            self._process, self._pidfd = self._starter.start(
                "sigd.daemon.shadow.process", [str(self._memory)], theirs.fileno(), [self._memory]
            )
        self._restarts.started()
        # Only the first start is waited for.
        self._task = replace(self._task, in_hurry=False)

    def wait_until_open(self) -> None:
        """Before a client is served.

        Raises:
            ModelRefused: the file cannot be its shadow.
            BackendUnavailable: this machine or installation cannot run it.
        """
        assert self._channel is not None
        self._channel.settimeout(OPEN_TIMEOUT_S)
        try:
            said = self._hear(self._channel)
        except TimeoutError:
            raise ModelRefused(f"{self._path}: opening it took longer than {OPEN_TIMEOUT_S:g} s") from None
        finally:
            self._channel.setblocking(False)
        if said is None:
            self._hang_up()
            raise ModelRefused(f"{self._path}: the process that opened it {self._reap()}")
        if isinstance(said, Refused):
            raise (BackendUnavailable if said.lacking else ModelRefused)(said.reason)
        self._note(said)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on start another process where one ends; that holds the loop up for a millisecond or
        two."""
        assert self._channel is not None
        self._loop = loop
        loop.add_reader(self._channel, self._heard)

    def status(self) -> ShadowStatus:
        """As it is now."""
        statistics = self._board.read()
        return ShadowStatus(
            path=self._path.encode("utf-8", "replace").decode(),
            sha256=self._opened.sha256,
            backend=self._opened.backend,
            running=self._running,
            restarts=self._restarts.count,
            skipped=statistics.skipped + self._ring.dropped,
            statistics=statistics,
        )

    def close(self) -> None:
        """End the process, whatever it does: it has nothing to save."""
        self._restarts.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._hang_up()
        if self._process is not None:
            self._process.kill()
            self._reap()
        os.close(self._memory)

    # -- the process -------------------------------------------------------------------------------------

    def _hear(self, channel: socket.socket) -> Said | None:
        """What it says; None where it has ended."""
        try:
            message = channel.recv(MESSAGE_BYTES_MAX)
        except ConnectionError:
            message = b""
        return decode_said(message) if message else None

    def _heard(self) -> None:
        assert self._channel is not None
        said = self._hear(self._channel)
        if isinstance(said, Opened):
            self._note(said)
            log.info("the shadow of %s runs again; SHA-256 %s", self.name, said.sha256)
        elif isinstance(said, Refused):
            log.error("the shadow of %s cannot run: %s", self.name, said.reason)
        else:
            self._will_end()

    def _note(self, opened: Opened) -> None:
        self._opened = opened
        self._running = True
        # The new process has not seen the clients of before.
        self._ring.introduce_again()

    def _will_end(self) -> None:
        """It has closed its end of the channel. Until the kernel has taken it down, the loop must not wait
        for it."""
        assert self._loop is not None
        assert self._process is not None
        self._hang_up()
        self._loop.add_reader(self._pidfd, self._ended)
        self._timer = self._loop.call_later(END_TIMEOUT_S, self._process.kill)

    def _ended(self) -> None:
        assert self._loop is not None
        assert self._timer is not None
        self._timer.cancel()
        self._restarts.ended(self._loop, self._reap())

    def _start_again(self) -> None:
        assert self._loop is not None
        self.start()
        self.watch(self._loop)

    def _hang_up(self) -> None:
        """Nothing more is said to it, or heard of it."""
        self._running = False
        if self._channel is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._channel)
            self._channel.close()
            self._channel = None

    def _reap(self) -> str:
        """Let go of a process that has ended, or will at once; how it did."""
        assert self._process is not None
        process, self._process = self._process, None
        if self._loop is not None:
            self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        try:
            code = process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"has not ended in {END_TIMEOUT_S:g} s"
        return how_it_ended(code)


class Shadows:
    """Those of one daemon, by the name of the model that is served."""

    def __init__(self) -> None:
        self._by_name: dict[str, Shadow] = {}

    def add(self, shadow: Shadow) -> None:
        """Closed with these."""
        self._by_name[shadow.name] = shadow

    def taps(self, name: str) -> Taps | None:
        """Those of the shadow of that model; None where it has none."""
        shadow = self._by_name.get(name)
        return None if shadow is None else shadow.taps

    def __iter__(self) -> Iterator[Shadow]:
        return iter(self._by_name.values())

    def status(self, name: str) -> ShadowStatus | None:
        """Of the shadow of that model, if it has one."""
        shadow = self._by_name.get(name)
        return None if shadow is None else shadow.status()

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """See `Shadow.watch`."""
        for shadow in self._by_name.values():
            shadow.watch(loop)

    def close(self) -> None:
        """End them all."""
        for shadow in self._by_name.values():
            shadow.close()


def start_shadows(config: Config, backends: Sequence[Backend], starter: Starter) -> Shadows:
    """All that the configuration asks for, open.

    Args:
        backends: of the models that are served, open.

    Raises:
        UsageError: one would run where it costs the models that are served their time.
        ModelError: one cannot be run.
        MissingDependency: no memory, or no process.
    """
    shadows = Shadows()
    try:
        for model, backend in zip(config.models(), backends, strict=True):
            if model.shadow is not None:
                task = _task(config, model, model.shadow, backend, backends, starter.cores)
                shadows.add(Shadow(backend.spec.name, task, starter))
        for shadow in shadows:
            shadow.start()
        for shadow in shadows:
            shadow.wait_until_open()
    except OSError as error:
        shadows.close()
        raise MissingDependency(f"a shadow's process cannot be started: {error}") from None
    except BaseException:
        shadows.close()
        raise
    return shadows


def _task(
    config: Config,
    model: ModelConfig,
    table: ShadowTable,
    backend: Backend,
    served: Iterable[Backend],
    cores: AbstractSet[int],
) -> Task:
    """What the process of the shadow of that model is told."""
    path = Path(table.path)
    if table.backend not in backend_names():
        raise UsageError(
            f"no backend is called {table.backend!r}: choose from {', '.join(backend_names())} for the shadow"
            " of"
            f" {backend.spec.name}"
        )
    gpu = model.gpu.gpu if table.gpu is None else table.gpu
    if backend_for(path, table.backend) == "tensorrt":
        for other, serving in zip(config.models(), served, strict=True):
            if isinstance(serving, OnGpu) and other.gpu.gpu == gpu:
                raise UsageError(
                    f"{path}: the shadow of {backend.spec.name} would run on GPU {gpu}, which serves"
                    f" {serving.spec.name} and"
                    " would keep its requests waiting: name another with gpu in its table, or compare with an"
                    " ONNX file"
                )
    return Task(
        path=os.fsencode(path.absolute()),
        backend=table.backend,
        name=backend.spec.name,
        batch_rows_max=model.batch_rows_max,
        gpu=gpu,
        mapped_io=model.gpu.mapped_io,
        device_timeout_ms=model.gpu.device_timeout_ms,
        reading=model.reading.for_another(),
        served=os.fsencode(backend.spec.path).decode("utf-8", "replace"),
        features=backend.spec.features,
        outputs=backend.spec.outputs,
        sample=table.sample,
        cores=sorted(cores),
        in_hurry=True,
        demand_trust=trust_is_demanded(),
        log_format=config.log_format.value,
    )
