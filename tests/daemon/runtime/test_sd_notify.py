"""What the service manager is told, over real datagram sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.descriptors import open_descriptors

from sigd.daemon.runtime import sd_notify as notify
from sigd.daemon.runtime.sd_notify import Notifier

PID = 4711

Closing = Callable[[Notifier], Notifier]


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.socket.setblocking(False)

    def told(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture
def close() -> Iterator[Closing]:
    """Closes what it was given, in the end."""
    with ExitStack() as stack:

        def later(notifier: Notifier) -> Notifier:
            stack.callback(notifier.close)
            return notifier

        yield later


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@sigd-test-{os.getpid()}"
    manager = Manager(address)
    yield manager
    manager.socket.close()


def test_each_message_is_as_the_protocol_has_it(manager: Manager, close: Closing) -> None:
    notifier = close(Notifier(manager.address, clock=lambda: 5_000_999))
    notifier.starting("opening it")
    assert manager.told() == ["STATUS=opening it"]
    notifier.ready("it serves")
    assert manager.told() == ["READY=1", "STATUS=it serves"]
    notifier.alive("1 answer")
    assert manager.told() == ["WATCHDOG=1", "STATUS=1 answer"]
    notifier.needs_time(300.0)
    assert manager.told() == ["EXTEND_TIMEOUT_USEC=300000000"]
    notifier.reloading("opening another")
    assert manager.told() == ["RELOADING=1", "MONOTONIC_USEC=5000", "STATUS=opening another"]
    notifier.stopping("draining", 2.5)
    assert manager.told() == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=2500000", "STATUS=draining"]


def test_a_status_is_one_line_whatever_it_says(manager: Manager, close: Closing) -> None:
    close(Notifier(manager.address)).ready("a model called\nSTOPPING=1\r\x85é")
    assert manager.told() == ["READY=1", "STATUS=a model called STOPPING=1  é"]


def test_the_environment_is_read_once_and_taken_out(manager: Manager, close: Closing) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "5000000",
        "WATCHDOG_PID": str(PID),
        "PATH": "/bin",
    }
    notifier = close(Notifier.from_environment(environ, PID))
    assert notifier.watchdog_ns == 5_000_000_000
    assert environ == {"PATH": "/bin"}
    notifier.ready("x")
    assert manager.told() == ["READY=1", "STATUS=x"]


@pytest.mark.parametrize(
    ("usec", "pid", "watchdog_ns"),
    [
        ("2000", str(PID), 2_000_000),
        ("2000", "", 2_000_000),
        ("2000", "1", 0),
        ("", str(PID), 0),
        ("soon", str(PID), 0),
        ("-5", str(PID), 0),
        ("0", str(PID), 0),
    ],
)
def test_whether_it_is_watched(usec: str, pid: str, watchdog_ns: int) -> None:
    environ = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert Notifier.from_environment(environ, PID).watchdog_ns == watchdog_ns


def test_started_by_hand_there_is_no_manager_to_tell() -> None:
    notifier = Notifier.from_environment({}, PID)
    notifier.starting("x")
    notifier.ready("x")
    notifier.alive("x")
    notifier.stopping("x", 1.0)
    assert notifier.watchdog_ns == 0


@pytest.mark.parametrize("address", ["relative", "vsock:2:1234", "@", "/"])
def test_an_address_that_is_none_is_said_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(address)
    assert f"NOTIFY_SOCKET is {address!r}" in caplog.text
    caplog.clear()
    notifier.ready("x")
    assert caplog.text == ""


def test_a_service_manager_that_is_gone_is_said_once(
    close: Closing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = close(Notifier(str(tmp_path / "notify")))
    for _ in range(5):
        notifier.alive("x")
    assert caplog.text.count("the service manager cannot be told") == 1
    manager = Manager(str(tmp_path / "notify"))
    notifier.alive("x")
    assert manager.told() == ["WATCHDOG=1", "STATUS=x"]
    manager.socket.close()
    notifier.alive("x")
    assert caplog.text.count("the service manager cannot be told") == 2, "and again when it goes again"


def test_deaf_service_manager_holds_nothing_up(
    close: Closing,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify, "SEND_TIMEOUT", (0, 20_000))
    manager = Manager(str(tmp_path / "notify"))
    notifier = close(Notifier(manager.address))
    while not caplog.text:
        notifier.alive("x")
    assert "Resource temporarily unavailable" in caplog.text
    begun_s = time.monotonic()
    notifier.ready("it waits for a moment")
    assert time.monotonic() - begun_s >= 0.02
    manager.socket.close()


def test_a_child_does_not_have_the_socket(manager: Manager, close: Closing) -> None:
    before = open_descriptors()
    close(Notifier(manager.address))
    (opened,) = open_descriptors() - before
    assert not os.get_inheritable(opened)
