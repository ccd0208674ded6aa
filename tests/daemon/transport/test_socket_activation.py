"""Sockets that were passed in: what is taken, what is refused, and that their files stay."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sigd.daemon.config.config import Config
from sigd.daemon.errors import UsageError
from sigd.daemon.transport.socket_activation import ADMIN, CLIENTS, PassedListener, place, take_sockets

PID = 4711


class Passing:
    """Puts sockets on consecutive descriptors, as a service manager does, and takes what is left back in the
    end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = ExitStack()
        self.first = 0

    def listening(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.folder / name))
        listener.listen()
        return listener

    def take(self, *sockets: socket.socket, names: str, pid: int = PID) -> dict[str, PassedListener]:
        self.first = 700
        for descriptor, passed in enumerate(sockets, self.first):
            os.dup2(passed.fileno(), descriptor, inheritable=True)
            passed.close()
            self.stack.callback(_close, descriptor)
        self.environ = {
            "LISTEN_PID": str(PID),
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": names,
            "PATH": "/bin",
        }
        taken = take_sockets(self.environ, pid, self.first)
        for listener in taken.values():
            self.stack.callback(listener.socket.close)
        return taken


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        pass


@pytest.fixture
def passing(tmp_path: Path) -> Iterator[Passing]:
    passing = Passing(tmp_path)
    with passing.stack:
        yield passing


def test_both_sockets_are_taken_by_name_whatever_their_order(passing: Passing) -> None:
    taken = passing.take(passing.listening("a"), passing.listening("c"), names="sigd-admin:sigd")
    assert {name: listener.path.name for name, listener in taken.items()} == {ADMIN: "a", CLIENTS: "c"}
    assert passing.environ == {"PATH": "/bin"}
    for listener in taken.values():
        assert not listener.socket.getblocking()
        assert not listener.socket.get_inheritable()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(passing.folder / "c"))
        accepted, _ = taken[CLIENTS].socket.accept()
        accepted.close()


def test_the_file_stays(passing: Passing) -> None:
    taken = passing.take(passing.listening("c"), names="sigd")
    with taken[CLIENTS] as listener:
        listener.remove()
        assert listener.path.is_socket()
    assert listener.socket.fileno() == -1
    assert listener.path.is_socket()


def test_what_is_meant_for_another_process_is_left_to_it(passing: Passing) -> None:
    assert passing.take(passing.listening("c"), names="sigd", pid=PID + 1) == {}
    assert passing.environ == {"PATH": "/bin"}, "it is no child's business either"
    assert os.get_inheritable(passing.first)


@pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": str(PID), "LISTEN_FDS": "0"}])
def test_without_any_there_are_none(environ: dict[str, str]) -> None:
    assert take_sockets(environ, PID) == {}


def test_a_count_that_is_none() -> None:
    with pytest.raises(UsageError, match="LISTEN_FDS is 'many'"):
        take_sockets({"LISTEN_PID": str(PID), "LISTEN_FDS": "many"}, PID)


@pytest.mark.parametrize("names", ["", "sigd.socket", "sigd2"])
def test_a_name_that_is_not_known(passing: Passing, names: str) -> None:
    with pytest.raises(UsageError, match=r"FileDescriptorName=sigd or FileDescriptorName=sigd-admin"):
        passing.take(passing.listening("c"), names=names)


def test_two_of_one_name(passing: Passing) -> None:
    with pytest.raises(UsageError, match="two sockets named 'sigd'"):
        passing.take(passing.listening("c"), passing.listening("d"), names="sigd:sigd")


def test_more_sockets_than_names(passing: Passing) -> None:
    with pytest.raises(UsageError, match="a socket named ''"):
        passing.take(passing.listening("c"), passing.listening("d"), names="sigd")


@pytest.mark.parametrize(
    ("family", "kind", "said"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "is AF_INET SOCK_STREAM"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "is AF_UNIX SOCK_DGRAM"),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, "is AF_UNIX SOCK_SEQPACKET"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "does not listen"),
    ],
)
def test_a_socket_that_cannot_be_served(passing: Passing, family: int, kind: int, said: str) -> None:
    with pytest.raises(UsageError, match=f"{said}; expected a Unix socket that listens"):
        passing.take(socket.socket(family, kind), names="sigd")


def test_a_connection_instead_of_a_listener(passing: Passing) -> None:
    here, there = socket.socketpair()
    with there, pytest.raises(UsageError, match="does not listen"):
        passing.take(here, names="sigd")


def test_a_socket_without_a_path(passing: Passing) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0sigd-test-{os.getpid()}")
    listener.listen()
    with pytest.raises(UsageError, match="has no path"):
        passing.take(listener, names="sigd")


def test_what_is_no_socket_at_all(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    environ = {"LISTEN_PID": str(PID), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "sigd"}
    with pytest.raises(UsageError, match="is no socket"):
        take_sockets(dict(environ), PID, descriptor)
    os.close(descriptor)
    with pytest.raises(UsageError, match="Bad file descriptor"):
        take_sockets(environ, PID, descriptor)


def test_the_configuration_has_the_places_where_they_are(passing: Passing) -> None:
    taken = passing.take(passing.listening("c"), passing.listening("a"), names="sigd:sigd-admin")
    placed = place(Config(), taken)
    assert placed.socket_path == passing.folder / "c"
    assert placed.admin_socket_path == passing.folder / "a"


def test_an_admin_socket_that_was_not_passed_lies_beside_the_other(passing: Passing) -> None:
    placed = place(Config(), passing.take(passing.listening("c"), names="sigd"))
    assert placed.admin_socket_path == passing.folder / "c.admin"


def test_a_configuration_that_says_another_place(passing: Passing) -> None:
    taken = passing.take(passing.listening("c"), names="sigd")
    assert place(Config(socket=str(passing.folder / "x/../c")), taken).socket_path == passing.folder / "c"
    with pytest.raises(UsageError, match=r"socket is /elsewhere/s, but the service manager listens on .*/c"):
        place(Config(socket="/elsewhere/s"), taken)


def test_nothing_passed_changes_nothing() -> None:
    config = Config(socket="/a", admin_socket="/b")
    assert place(config, {}) is config


def test_mode_that_has_no_effect_is_told_with_the_units_name(
    passing: Passing, caplog: pytest.LogCaptureFixture
) -> None:
    taken = passing.take(passing.listening("lob.sock.admin"), names="sigd-admin")
    path = passing.folder / "lob.sock.admin"
    path.chmod(0o600)
    place(Config(), taken)
    place(Config(admin_socket_mode="0600"), taken)
    assert not caplog.records
    place(Config(admin_socket_mode="0660"), taken)
    (told,) = caplog.messages
    assert told.startswith(f"admin_socket_mode = 0660 has no effect: the service manager listens on {path}")
    assert "SocketMode=0660 with `systemctl edit sigd-admin@lob.socket`" in told
    path.chmod(0o660)
    place(Config(admin_socket_mode="0660"), taken)
    assert len(caplog.records) == 1, "as it is configured"
