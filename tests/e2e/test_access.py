"""Users who may connect and users who may not, at a real daemon's sockets."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigd.wire.errors import Rejected
from sigd.wire.messages import Hello, Reject
from sigd.wire.status import RejectCode

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

ENGINE, TRADERS, OUTSIDER = 4_000_001, 4_000_002, 4_000_003
"""Numbers that no user and no group of this machine has."""
MANY_GROUPS = tuple(range(5_000_000, 5_000_400))
"""More than Python's getsockopt() takes."""

# The groups and the user change once everything is imported: the interpreter may lie where only root can
# look.
ASK = """
import contextlib, os, socket, sys
path, hello, uid, gid, groups = sys.argv[1], bytes.fromhex(sys.argv[2]), *map(eval, sys.argv[3:])
os.setgroups(groups), os.setgid(gid), os.setuid(uid)
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(60)
    connection.connect(path)
    with contextlib.suppress(BrokenPipeError):  # refused already
        connection.sendall(hello)
    sys.stdout.write(connection.recv(128).hex())
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")


def ask_as(
    path: Path, uid: int, gid: int = OUTSIDER, groups: Sequence[int] = (), said: bytes = Hello().encode()
) -> bytes:
    """Say something as another user, Hello by default; the first bytes of the answer."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK, str(path), said.hex(), str(uid), str(gid), str(list(groups))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise ConnectionError(done.stderr)
    return bytes.fromhex(done.stdout)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may look into, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="sigd-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def silent_crowd(path: Path, count: int) -> Iterator[None]:
    """So many connections on which nothing is said."""
    with ExitStack() as crowd:
        for _ in range(count):
            crowd.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        yield


@needs_root
def test_users_and_members_of_groups_are_served_and_no_other(
    open_folder: Path, start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon(
        "--model",
        str(models.copied(4)),
        folder=open_folder,
        config={
            "socket_mode": "'0666'",
            "access.users": [ENGINE],
            "access.groups": [TRADERS],
        },
    )
    for uid, gid, groups in (
        (ENGINE, OUTSIDER, ()),
        (OUTSIDER, TRADERS, ()),
        (OUTSIDER, OUTSIDER, (TRADERS,)),
        (OUTSIDER, OUTSIDER, (*MANY_GROUPS, TRADERS)),
        (0, 0, ()),
    ):
        assert len(ask_as(daemon.socket, uid, gid, groups)) == 128, "a Welcome"
    for uid, gid, groups in (
        (OUTSIDER, OUTSIDER, ()),
        (TRADERS, ENGINE, (ENGINE,)),
        (OUTSIDER, OUTSIDER, MANY_GROUPS),
    ):
        refused = Reject.decode(ask_as(daemon.socket, uid, gid, groups)[8:])
        assert refused.code == RejectCode.NOT_AUTHORISED
        assert refused.reason == f"uid {uid} refused; expected user {ENGINE} or group {TRADERS}"
    status = daemon.until(lambda status: status.connections_open == 0)
    assert status.rejects == {"NOT_AUTHORISED": 3}
    assert f"NOT_AUTHORISED (7): uid {OUTSIDER} refused; expected user {ENGINE}" in daemon.said()


@needs_root
def test_the_permissions_of_both_sockets_are_their_own(
    open_folder: Path, start_daemon: StartDaemon, models: ModelMaker
) -> None:
    """By default the group may connect, and only the daemon's own user may ask or command."""
    daemon = start_daemon("--model", str(models.copied(4)), folder=open_folder)
    admin = daemon.socket.with_name("sigd.sock.admin")
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(admin.stat().st_mode) == 0o600
    group = os.getegid()
    assert len(ask_as(daemon.socket, OUTSIDER, group)) == 128
    for path, gid in ((daemon.socket, OUTSIDER), (admin, group)):
        with pytest.raises(ConnectionError, match="PermissionError"):
            ask_as(path, OUTSIDER, gid)


@needs_root
def test_the_admin_socket_may_be_opened_to_the_group(
    open_folder: Path, start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon(
        "--model", str(models.copied(4)), folder=open_folder, config={"admin_socket_mode": "'0660'"}
    )
    admin = daemon.socket.with_name("sigd.sock.admin")
    assert ask_as(admin, OUTSIDER, os.getegid(), said=b'{"op": "status"}\n').startswith(b'{"version":')


@needs_root
def test_one_user_cannot_take_the_places_of_another(
    open_folder: Path, start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon(
        "--model",
        str(models.copied(4)),
        folder=open_folder,
        config={"socket_mode": "'0666'", "connections_max": 4, "connections_per_user_max": 3},
    )
    clients = [daemon.connect() for _ in range(3)]
    with pytest.raises(Rejected, match=f"3 clients of uid {os.geteuid()} are served already"):
        daemon.connect()
    assert len(ask_as(daemon.socket, OUTSIDER)) == 128
    for client in clients:
        assert client.request([5, 0, 0, 0]).outputs[0] == 5
        client.close()


def test_thousand_silent_connections_lock_no_client_out(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    """They hold every place that one user can have, until a client has something to say."""
    daemon = start_daemon("--model", str(models.copied(4)), config={"hello_timeout_s": 3600})
    before = daemon.connect()
    assert before.request([1, 0, 0, 0]).outputs[0] == 1
    with silent_crowd(daemon.socket, 1_100):
        daemon.until(lambda status: status.connections_accepted == 1_101)
        assert daemon.status().connections_open == 1_000
        with daemon.connect() as after:
            assert after.request([2, 0, 0, 0]).outputs[0] == 2
        assert before.request([3, 0, 0, 0]).outputs[0] == 3
    before.close()
