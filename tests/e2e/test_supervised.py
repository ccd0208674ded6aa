"""`sigd serve` under a service manager that the test plays: what it is told, and the sockets that it passes.

A real one is what `make test-systemd` boots.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.e2e.conftest import PATIENCE_S

from sigd.daemon.config.config import admin_path_of

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

ROW = [1.0, 2.0, 3.0, 4.0]
WATCHDOG_US = 800_000


class Manager:
    """Its notification socket, and the two that it passes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(folder / "notify"))
        self.notified.settimeout(PATIENCE_S)
        self.listening: dict[Path, socket.socket] = {}

    def environment(self, watchdog_us: int = 0) -> dict[str, str]:
        told = {"NOTIFY_SOCKET": str(self.folder / "notify")}
        return {**os.environ, **told, **({"WATCHDOG_USEC": str(watchdog_us)} if watchdog_us else {})}

    def listen(self, path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(64)
        self.listening[path] = listener
        return listener

    def stop_listening(self, path: Path) -> None:
        """Its file goes with it."""
        self.listening.pop(path).close()
        path.unlink()

    def told(self) -> dict[str, str]:
        """The next message."""
        lines = self.notified.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, name: str) -> dict[str, str]:
        """The next message that has it."""
        while name not in (told := self.told()):
            pass
        return told


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.notified.close()
    for listener in manager.listening.values():
        listener.close()


@pytest.fixture
def start_activated(
    manager: Manager, start_daemon: StartDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Daemon]:
    """Starts daemons on two sockets that are passed on descriptors 3 and 4; LISTEN_PID is what only the
    process itself can know, so a program comes before it that becomes it."""
    folder = tmp_path / "activated"
    folder.mkdir()
    clients, admin = (manager.listen(folder / name) for name in ("sigd.sock", "sigd.sock.admin"))
    before = tmp_path / "activate"
    before.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"copies = [os.dup(number) for number in ({clients.fileno()}, {admin.fileno()})]\n"
        "for place, copy in enumerate(copies, 3):\n"
        "    os.dup2(copy, place)\n"
        "    os.set_inheritable(place, True)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    before.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(before))

    def start(*arguments: str, names: str = "sigd:sigd-admin") -> Daemon:
        environ = {**manager.environment(), "LISTEN_FDS": "2", "LISTEN_FDNAMES": names}
        return start_daemon(
            *arguments,
            ready=False,
            folder=folder,
            env=environ,
            pass_fds=(clients.fileno(), admin.fileno()),
        )

    return start


def test_ready_is_told_once_it_listens(
    manager: Manager, start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), ready=False, env=manager.environment())
    assert manager.told()["STATUS"].startswith("opening ")
    told = manager.told()
    assert told["READY"] == "1"
    assert told["STATUS"].startswith("0 clients; ")
    with daemon.connect() as client:
        assert client.request(ROW).outputs.tolist() == ROW
    daemon.process.send_signal(signal.SIGTERM)
    told = manager.told()
    assert told["STOPPING"] == "1"
    assert int(told["EXTEND_TIMEOUT_USEC"]) > 5_000_000, "as long as it may drain"
    assert daemon.process.wait(PATIENCE_S) == 0


def test_time_is_asked_for_where_the_daemon_waits_with_a_limit_of_its_own(
    manager: Manager, start_daemon: StartDaemon, models: ModelMaker
) -> None:
    model = str(models.copied(4))
    daemon = start_daemon("--model", model, "--shadow", model, ready=False, env=manager.environment())
    assert manager.until("EXTEND_TIMEOUT_USEC") == {"EXTEND_TIMEOUT_USEC": "300000000"}, "a shadow that opens"
    manager.until("READY")
    command = [sys.executable, "-P", "-m", "sigd.daemon", "reload", "--socket", str(daemon.socket)]
    assert subprocess.run(command, check=False, timeout=PATIENCE_S).returncode == 0
    assert manager.until("EXTEND_TIMEOUT_USEC") == {"EXTEND_TIMEOUT_USEC": "600000000"}, "a reload"


def test_a_daemon_that_cannot_serve_is_never_ready(
    manager: Manager, start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / "sigd.sock").write_text("in the way")
    daemon = start_daemon(
        "--model", str(models.copied(4)), ready=False, folder=tmp_path / "daemon", env=manager.environment()
    )
    assert daemon.process.wait(PATIENCE_S) == 2
    manager.notified.setblocking(False)
    assert "READY" not in manager.told()
    with pytest.raises(BlockingIOError):
        manager.told()


@pytest.mark.parametrize("idle", ["spin", "backoff", "block"])
def test_the_watchdog_is_fed_until_it_hangs(
    manager: Manager, start_daemon: StartDaemon, models: ModelMaker, idle: str
) -> None:
    daemon = start_daemon(
        "--model", str(models.copied(4)), "--idle", idle, env=manager.environment(WATCHDOG_US)
    )
    manager.until("READY")
    for _ in range(3):
        assert manager.until("WATCHDOG")["WATCHDOG"] == "1"
    daemon.process.send_signal(signal.SIGSTOP)
    manager.notified.settimeout(WATCHDOG_US / 1e6)
    under_way = 0
    try:
        while manager.until("WATCHDOG"):
            under_way += 1
    except TimeoutError:
        pass
    assert under_way <= 1
    daemon.process.send_signal(signal.SIGCONT)
    manager.notified.settimeout(PATIENCE_S)
    assert manager.until("WATCHDOG")["STATUS"].startswith("0 clients; ")


def test_a_hang_is_told_with_its_stack(
    manager: Manager, start_daemon: StartDaemon, models: ModelMaker
) -> None:
    """What systemd does to a daemon whose watchdog was not fed."""
    daemon = start_daemon("--model", str(models.copied(4)), env=manager.environment(WATCHDOG_US))
    assert daemon.stop(signal.SIGABRT) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in daemon.said()
    assert "uvloop" in daemon.said()


def test_passed_sockets_are_served_and_outlive_the_daemon(
    manager: Manager, start_activated: Callable[..., Daemon], models: ModelMaker
) -> None:
    model = str(models.copied(4))
    daemon = start_activated("--model", model)
    manager.until("READY")
    assert daemon.status().socket == str(daemon.socket)
    inode = daemon.socket.stat().st_ino
    with daemon.connect() as client:
        assert client.request(ROW).outputs.tolist() == ROW
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(str(daemon.socket))
    daemon = start_activated("--model", model)
    manager.until("READY")
    waiting.close()
    with daemon.connect() as client:
        assert client.request(ROW).outputs.tolist() == ROW
    assert daemon.stop() == 0
    assert daemon.socket.stat().st_ino == inode, "the file is not the daemon's to remove"
    assert admin_path_of(daemon.socket).is_socket()
    for path in (daemon.socket, admin_path_of(daemon.socket)):
        manager.stop_listening(path)


def test_who_connects_while_it_starts_waits_and_is_answered(
    manager: Manager, start_activated: Callable[..., Daemon], models: ModelMaker
) -> None:
    """The socket was there first: there is nothing to find out, and no time to be too early."""
    daemon = start_activated("--model", str(models.copied(4)))
    with daemon.connect() as client:
        assert client.request(ROW).outputs.tolist() == ROW
    for path in (daemon.socket, admin_path_of(daemon.socket)):
        assert daemon.process.poll() is None
        manager.stop_listening(path)


def test_sockets_with_wrong_names_are_told_how_to_be_named(
    start_activated: Callable[..., Daemon], models: ModelMaker
) -> None:
    daemon = start_activated("--model", str(models.copied(4)), names="sigd.socket:sigd-admin.socket")
    assert daemon.process.wait(PATIENCE_S) == 2
    assert "FileDescriptorName=sigd" in daemon.said()
