"""What may befall a daemon while it serves: files that go away, signals, a standstill, a log that takes
nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.daemon.admin.server import CLIENTS_MAX
from sigd.daemon.errors import MissingDependency
from sigd.wire.client import connect
from sigd.wire.errors import ConnectFailed
from sigd.wire.messages import Hello
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

ROW = np.array([3, 0, 0, 0], np.float32)
MS = 1_000_000


def stand_still(daemon: Daemon) -> None:
    """Stop the process, and wait until it stands."""
    daemon.process.send_signal(signal.SIGSTOP)
    while "State:\tT" not in Path(f"/proc/{daemon.process.pid}/status").read_text():
        time.sleep(0.001)


def log_to_a_full_disk() -> None:
    """In the child: a write to standard error fails with ENOSPC."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def test_what_became_worthless_during_a_standstill_is_answered_expired(daemon: Daemon) -> None:
    """A machine that sleeps, a debugger, a container that is frozen."""
    with daemon.connect() as client:
        assert client.request(ROW).status == Status.OK
        stand_still(daemon)
        deadline_ns = time.monotonic_ns() + 20 * MS
        for _ in range(10):
            client.send(ROW, deadline_ns=deadline_ns)
        client.send(ROW)
        while time.monotonic_ns() < deadline_ns:
            time.sleep(0.001)
        daemon.process.send_signal(signal.SIGCONT)
        assert [client.receive().status for _ in range(11)] == [Status.EXPIRED] * 10 + [Status.OK]
        assert client.request(ROW, deadline_ns=time.monotonic_ns() + 10**12).status == Status.OK


def test_a_standstill_under_load_loses_nothing(daemon: Daemon) -> None:
    with daemon.connect() as client:
        for _ in range(20):
            client.send_many([ROW] * 100)
            stand_still(daemon)
            client.send_many([ROW] * 100)
            daemon.process.send_signal(signal.SIGCONT)
            assert (client.receive_many(200)["status"] == Status.OK).all()


@pytest.mark.parametrize(
    "number", [signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2], ids=lambda number: number.name
)
def test_a_signal_that_means_nothing_to_it_does_nothing(daemon: Daemon, number: signal.Signals) -> None:
    with daemon.connect() as client:
        for _ in range(3):
            daemon.process.send_signal(number)
            assert client.request(ROW).status == Status.OK
    assert daemon.process.poll() is None


@pytest.mark.parametrize("what", ["replaced", "truncated", "overwritten", "deleted"])
def test_a_model_file_that_changes_while_it_is_served_changes_nothing(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path, what: str
) -> None:
    file = tmp_path / "model.onnx"
    shutil.copy(models.scaled(2.0), file)
    file.chmod(0o644)
    daemon = start_daemon("--model", str(file))
    with daemon.connect() as client:
        assert client.request(ROW).outputs[0] == 6
        if what == "replaced":
            shutil.copy(models.scaled(5.0), tmp_path / "other")
            (tmp_path / "other").replace(file)
        elif what == "truncated":
            os.truncate(file, 10)
        elif what == "overwritten":
            file.write_bytes(bytes(file.stat().st_size))
        else:
            file.unlink()
        client.send_many([ROW] * 200)
        assert (client.receive_many(200)["outputs"][:, 0] == 6).all()
        with daemon.connect() as after:
            assert after.request(ROW).outputs[0] == 6
            assert after.welcome.model_sha256 == client.welcome.model_sha256


@pytest.mark.parametrize("what", ["file", "directory"])
def test_removed_socket_harms_no_connected_client(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path, what: str
) -> None:
    model = str(models.copied(4))
    folder = tmp_path / "run"
    daemon = start_daemon("--model", model, folder=folder)
    with daemon.connect() as client:
        if what == "file":
            for path in folder.glob("sigd.sock*"):
                path.unlink()
        else:
            folder.rename(tmp_path / "away")
        assert client.request(ROW).status == Status.OK
        with pytest.raises(ConnectFailed, match="no such socket"):
            connect(daemon.socket)
        successor = start_daemon("--model", model, folder=folder)
        with successor.connect() as other:
            assert other.welcome.daemon_pid == successor.process.pid
            assert other.request(ROW).status == Status.OK
        assert client.request(ROW).status == Status.OK
    daemon.errors = (tmp_path / "away" if what == "directory" else folder) / "stderr"
    assert daemon.stop() == 0, daemon.said()
    with successor.connect() as other:
        assert other.request(ROW).status == Status.OK, "its socket is its own"


def test_a_log_on_a_full_disk_holds_up_nothing(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), preexec_fn=log_to_a_full_disk)
    with daemon.connect() as client:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as hostile:
                hostile.connect(str(daemon.socket))
                hostile.sendall(Hello().encode() + b"\xff" * 8)
                while hostile.recv(1 << 16):
                    pass
            assert client.request(ROW).status == Status.OK
    assert daemon.stop() == 0


def test_a_flood_of_admin_clients_keeps_no_client_waiting(daemon: Daemon) -> None:
    """Those who ask for nothing hold their places for a while; clients do not notice."""
    admin = str(daemon.socket) + ".admin"
    with daemon.connect() as client, contextlib.ExitStack() as crowd:
        for _ in range(300):
            crowd.enter_context(socket.socket(socket.AF_UNIX)).connect(admin)
        for _ in range(50):
            assert client.request(ROW).status == Status.OK
        assert daemon.descriptors() < 300, f"at most {CLIENTS_MAX} at a time"
    while True:
        with contextlib.suppress(MissingDependency):
            assert daemon.status().connections_open == 0
            break
