"""Opening the sockets: never open to others for a moment, never over a living daemon's."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sigd.daemon.errors import AlreadyServed, MissingDependency, UsageError
from sigd.daemon.transport import listener as listener_module
from sigd.daemon.transport.listener import Listener

MODE = 0o660


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sigd.sock"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def stale(path: Path) -> None:
    """What a daemon that was killed leaves behind."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("umask_of_caller", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
def test_the_permissions_are_right_from_the_first_moment(
    path: Path, umask_of_caller: int, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    listen = socket.socket.listen

    def listen_watched(self: socket.socket, backlog: int) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", listen_watched)
    monkeypatch.setattr(os, "chmod", lambda *_: pytest.fail("permissions fixed afterwards"))
    os.umask(umask_of_caller)
    with Listener(path, mode):
        assert connects(path)
    assert modes == [mode], "before anybody could connect"
    assert os.umask(0o022) == umask_of_caller, "the caller's own is put back"


def test_the_file_goes_with_the_listener(path: Path) -> None:
    with Listener(path, MODE) as listener:
        assert path.is_socket()
        assert not os.get_inheritable(listener.socket.fileno())
        listener.remove()
        assert not path.exists()
        listener.remove()
    assert listener.socket.fileno() == -1
    assert list(path.parent.iterdir()) == []


def test_the_file_goes_where_serving_fails(path: Path) -> None:
    def fail_while_serving() -> None:
        with Listener(path, MODE):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_while_serving()
    assert not path.exists()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    stale(path)
    assert not connects(path)
    with Listener(path, MODE):
        assert connects(path)


def test_a_living_daemons_socket_is_refused_and_left_alone(path: Path) -> None:
    with Listener(path, MODE):
        with pytest.raises(AlreadyServed, match="serving there already") as caught, Listener(path, MODE):
            pass
        assert caught.value.exit_code == 3
        assert connects(path)


def test_a_living_daemon_whose_backlog_is_full_is_one_too(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            waiting.append(client)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(AlreadyServed), Listener(path, MODE):
            pass
        for client in waiting:
            client.close()


@pytest.mark.parametrize("what", ["file", "folder", "link to nowhere", "fifo"])
def test_what_is_no_socket_is_left_alone(path: Path, what: str) -> None:
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    before = path.lstat().st_ino
    with pytest.raises(UsageError, match="left alone"), Listener(path, MODE):
        pass
    assert path.lstat().st_ino == before


def test_a_socket_of_another_kind_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(path))
        with pytest.raises(MissingDependency, match="cannot tell"), Listener(path, MODE):
            pass
        assert path.is_socket()


@pytest.mark.usefixtures("umask")
def test_the_directory_is_made_for_the_group_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sigd.sock"
    with Listener(path, MODE):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MissingDependency, match="missing and cannot be made"),
        Listener(tmp_path / "a/b/s", MODE),
    ):
        pass
    with pytest.raises(UsageError, match="no directory"), Listener(tmp_path / "file" / "s", MODE):
        pass


def test_directory_in_tmp_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everybodys = tmp_path / "tmp"
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    (everybodys / "sigd").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid() == 0:
        os.chown(everybodys / "sigd", 12345, -1)
    with pytest.raises(MissingDependency, match="belongs to user"), Listener(everybodys / "sigd" / "s", MODE):
        pass


def test_another_daemons_file_is_not_removed(path: Path) -> None:
    with Listener(path, MODE):
        path.unlink()
        stale(path)
    assert path.is_socket()


def test_of_two_that_start_at_once_one_waits_for_the_other(path: Path) -> None:
    """The holder of the directory's lock may be between looking and binding."""
    stale(path)
    holder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    opened = threading.Event()

    def start() -> None:
        with Listener(path, MODE):
            opened.set()

    thread = threading.Thread(target=start)
    thread.start()
    assert not opened.wait(0.1)
    os.close(holder)
    thread.join()
    assert opened.is_set()


def test_a_lock_that_is_never_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "LOCK_TIMEOUT_S", 0.03)
    holder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(MissingDependency, match="held its lock"), Listener(path, MODE):
        pass
    os.close(holder)


def test_many_that_start_at_once_over_a_stale_socket_leave_one_that_serves(path: Path) -> None:
    stale(path)
    program = (
        "import sys; from pathlib import Path\n"
        "from sigd.daemon.errors import AlreadyServed\n"
        "from sigd.daemon.transport.listener import Listener\n"
        "sys.stdin.readline()\n"
        "try:\n"
        f"    with Listener(Path({str(path)!r}), 0o660):\n"
        "        print('serves', flush=True); sys.stdin.readline()\n"
        "except AlreadyServed:\n"
        "    print('refused', flush=True); sys.stdin.readline()\n"
    )
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = []
    for process in starting:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in starting:
        assert process.stdout
        said.append(process.stdout.readline().strip())
    for process in starting:
        process.communicate("\n")
    assert sorted(said) == ["refused", "refused", "refused", "serves"]
    assert not path.exists()
