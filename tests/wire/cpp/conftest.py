"""Fixtures for the tests of the C++ client: one that is told what to do, and a daemon that a test plays."""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sigd.wire import fields
from sigd.wire.layout import frame_dtype, response_frame_bytes
from sigd.wire.messages import Hello, Welcome
from sigd.wire.region import RegionLayout, region_layout
from sigd.wire.ring import Region
from sigd.wire.status import Transport

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.wire.conftest import CppBuilder


class CppClient:
    """The C++ client, told what to do: see driver.cpp."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def tell(self, command: str) -> None:
        """Have something done; `hear` gives what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")

    def hear(self) -> str:
        """What came of the oldest command that was told."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], 20)
        assert readable, "the client does not come back"
        return self._process.stdout.readline().decode().rstrip("\n")

    def do(self, command: str) -> str:
        """Have something done and see what comes of it."""
        self.tell(command)
        return self.hear()

    def until(self, command: str, wanted: str, timeout_s: float = 10.0) -> str:
        """Repeat a command until its outcome begins with `wanted`."""
        end_s = time.monotonic() + timeout_s
        while not (found := self.do(command)).startswith(wanted):
            assert time.monotonic() < end_s, f"{command}: {found}, expected {wanted}"
        return found

    @contextlib.contextmanager
    def no_more_descriptors(self) -> Iterator[None]:
        """It may open no file meanwhile."""
        pid = self._process.pid
        own = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, own[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, own)

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(20) == 0
        finally:
            self._process.stdout.close()


@pytest.fixture(params=["plain", "clang", pytest.param("sanitized", marks=pytest.mark.slow)])
def cpp_client(cpp: CppBuilder, request: pytest.FixtureRequest) -> Iterator[CppClient]:
    """One C++ client that is told what to do; as it is, by the other compiler as C++23, and with
    AddressSanitizer and UBSan watching."""
    flags = cpp.sanitized("address,undefined") if request.param == "sanitized" else ("-O1",)
    compiler, standard = ("clang++", "c++2b") if request.param == "clang" else ("g++", "c++20")
    driver = Path(__file__).with_name("driver.cpp")
    program = cpp.build(driver, *flags, "-fno-exceptions", "-fno-rtti", compiler=compiler, standard=standard)
    client = CppClient(program)
    yield client
    client.end()


class ShownDaemon:
    """A daemon that does what the test does with it: it listens, and the test plays it frame by frame.

    Attributes:
        path: where it listens.
        connection: of the client that was accepted last.
        region, request_bell, response_bell: of the shared memory that was granted last.
    """

    features, outputs = 5, 3
    clock_ns = 1_000_000

    region: Region
    request_bell: int
    response_bell: int

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "s")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(4)
        self.listener.settimeout(10)
        self._open = contextlib.ExitStack()
        self._open.callback(self.listener.close)

    def close(self) -> None:
        """Close everything."""
        self._open.close()

    def accept(self) -> Hello:
        """Take the next client in and read its Hello."""
        self.connection, _ = self.listener.accept()
        self._open.callback(self.connection.close)
        self.connection.settimeout(10)
        frame = self.read(80)
        assert frame[:8] == bytes([72, 0, 1, 0, 91, 0, 1, 0])
        return Hello.decode(frame[8:])

    def read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < count:
            part = self.connection.recv(count - len(data))
            assert part, f"the client closed after {len(data)} of {count} bytes"
            data += part
        return data

    def unread(self) -> bytes:
        """What has come and was not read; nothing, where nothing has."""
        self.connection.setblocking(False)
        try:
            return self.connection.recv(1 << 20)
        except BlockingIOError:
            return b""
        finally:
            self.connection.settimeout(10)

    def send(self, data: bytes) -> None:
        """To the client."""
        self.connection.sendall(data)

    def welcome(self, **changes: Any) -> Welcome:
        """What a good daemon grants, with changes."""
        granted: dict[str, Any] = {
            "features": self.features,
            "outputs": self.outputs,
            "in_flight_max": 4,
            "model_generation": 7,
            "daemon_pid": 4321,
            "clock_ns": self.clock_ns,
            "model_sha256": bytes(range(100, 132)),
            "model_name": "shown",
        }
        return Welcome(**(granted | changes))

    def requests(self, count: int) -> np.ndarray[Any, np.dtype[np.void]]:
        """The next requests, as they came over the socket."""
        dtype = frame_dtype(fields.SIGNAL_REQUEST, self.features)
        return np.frombuffer(self.read(count * dtype.itemsize), dtype)

    def answers(self, *sequences: int, **changes: Any) -> bytes:
        """Answers to these sequences, with changes."""
        dtype = frame_dtype(fields.SIGNAL_RESPONSE, outputs=self.outputs)
        rows = np.zeros(len(sequences), dtype)
        rows["block_length"] = response_frame_bytes(self.outputs) - 8
        rows["template_id"], rows["schema_id"], rows["version"] = 11, 91, 1
        rows["sequence"] = np.array(sequences, np.uint64)
        rows["outputs"] = np.arange(self.outputs) + 0.25
        for name, value in changes.items():
            rows[name] = value
        return rows.tobytes()

    def memory(self, layout: RegionLayout, *, sealed: bool = True) -> int:
        """A new region in a memfd; `region` is the daemon's view of it."""
        descriptor = os.memfd_create("region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._open.callback(os.close, descriptor)
        os.ftruncate(descriptor, layout.region_bytes)
        if sealed:
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        self.region = Region.create(memoryview(mmap.mmap(descriptor, layout.region_bytes)), layout)
        return descriptor

    def bells(self) -> list[int]:
        """Two new doorbells."""
        self.request_bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.response_bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for bell in (self.request_bell, self.response_bell):
            self._open.callback(os.close, bell)
        return [self.request_bell, self.response_bell]

    def shared_welcome(self, layout: RegionLayout, **changes: Any) -> Welcome:
        """The Welcome that goes with a region."""
        granted = {
            "transport": Transport.SHARED_MEMORY,
            "in_flight_max": layout.ring_slots,
            "ring_slots": layout.ring_slots,
            "request_stride": layout.request_stride,
            "response_stride": layout.response_stride,
        }
        return self.welcome(**(granted | changes))

    def grant_memory(self, ring_slots: int = 4) -> None:
        """Answer a Hello with shared memory."""
        layout = region_layout(ring_slots, self.features, self.outputs)
        descriptors = [self.memory(layout), *self.bells()]
        self.send_with(self.shared_welcome(layout).encode(), descriptors)

    def send_with(self, data: bytes, descriptors: list[int]) -> None:
        """Bytes and descriptors, to the client."""
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        assert self.connection.sendmsg([data], rights) == len(data)

    def rung(self, bell: int) -> int:
        """How often a doorbell was rung since it was last looked at."""
        try:
            return os.eventfd_read(bell)
        except BlockingIOError:
            return 0


@pytest.fixture
def shown_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShownDaemon]:
    """A daemon that the test plays."""
    daemon = ShownDaemon(tmp_path_factory.mktemp("shown"))
    yield daemon
    daemon.close()


class DaemonProcess:
    """A daemon as a process, that may be killed and started again at the same path."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.path = str(folder / "s")
        self._log = folder / "log"
        self._command = [part.replace("SOCKET", self.path) for part in command]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until a client can connect."""
        Path(self.path).unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        end_s = time.monotonic() + 60
        while not self._accepts():
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < end_s, "the daemon does not listen"
            time.sleep(0.02)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self.path)
            except OSError:
                return False
            return True

    def end(self, signal_number: signal.Signals) -> None:
        """Send the signal and wait for the end."""
        if self._process is not None:
            self._process.send_signal(signal_number)
            self._process.wait(30)
            self._process = None


@pytest.fixture
def live_daemon(models: ModelMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """`sigd serve` with a small model, started."""
    model = str(models.mlp(features=8, outputs=3))
    command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--socket", "SOCKET", "--model", model]
    daemon = DaemonProcess(tmp_path_factory.mktemp("live"), command)
    daemon.start()
    yield daemon
    daemon.end(signal.SIGKILL)


@pytest.fixture
def ring_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """ring_peer.py, which grants shared memory and sleeps when it has nothing to do, started."""
    script = str(Path(__file__).with_name("ring_peer.py"))
    peer = DaemonProcess(tmp_path_factory.mktemp("peer"), [sys.executable, "-P", script, "SOCKET", "block"])
    peer.start()
    yield peer
    peer.end(signal.SIGKILL)
