"""The C++ client that comes back: pauses, and which ends of a session are no use to try again after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.wire.cpp.conftest import CppClient

from sigd.wire.messages import Goodbye, Reject
from sigd.wire.status import GoodbyeCode, RejectCode

if TYPE_CHECKING:
    from tests.wire.conftest import CppBuilder
    from tests.wire.cpp.conftest import ShownDaemon

MS = 1_000_000
Starter = Callable[..., CppClient]


@pytest.fixture
def comeback(cpp: CppBuilder, shown_daemon: ShownDaemon) -> Iterator[Starter]:
    """comeback(first_ns, longest_ns): one that connects to the shown daemon."""
    program = cpp.build(Path(__file__).with_name("comeback.cpp"), "-O1", "-fno-exceptions")
    with ExitStack() as stack:

        def start(first_ns: int = 50 * MS, longest_ns: int = 10_000 * MS) -> CppClient:
            client = CppClient(program, shown_daemon.path, str(first_ns), str(longest_ns))
            stack.callback(client.end)
            return client

        yield start


def grant(client: CppClient, daemon: ShownDaemon, command: str = "wait") -> None:
    client.tell(command)
    daemon.accept()
    daemon.send(daemon.welcome().encode())
    assert client.hear().startswith("session")


def refuse(client: CppClient, daemon: ShownDaemon, code: RejectCode) -> str:
    client.tell("get")
    daemon.accept()
    daemon.send(Reject(code, "no").encode())
    daemon.connection.close()
    return client.hear()


def test_looking_never_waits_and_says_when_to_look_again(
    comeback: Starter, shown_daemon: ShownDaemon
) -> None:
    client = comeback()
    assert client.do("next") == "now"
    assert client.do("look") == "none 0 | connecting"
    assert client.do("next") == "later"
    shown_daemon.accept()
    assert client.do("look") == "none 0 | connecting"
    shown_daemon.send(Reject(RejectCode.TOO_MANY_CONNECTIONS, "full").encode())
    shown_daemon.connection.close()
    assert client.do("get").startswith("none 0 | the daemon rejected the session: full")
    assert client.do("next") == "later"
    client.do("begin anew")
    assert client.do("next") == "now"
    grant(client, shown_daemon, "get")


@pytest.mark.parametrize(
    ("first_ns", "longest_ns", "full"),
    [
        (MS, 7 * MS, [MS, 2 * MS, 4 * MS, 7 * MS, 7 * MS]),
        (MS, 10, [MS, MS]),
        (-5, -7, [100_000, 100_000]),
        (0, 300_000, [100_000, 200_000, 300_000]),
        (2**62, 2**63 - 1, [2**62, 2**63 - 1, 2**63 - 1]),
    ],
)
def test_pauses_double_and_are_drawn_from_the_upper_half(
    comeback: Starter, first_ns: int, longest_ns: int, full: list[int]
) -> None:
    client = comeback(first_ns, longest_ns)
    for _ in range(20):
        for most in full:
            assert most // 2 <= int(client.do("pause")) <= most
        client.do("begin anew")


@pytest.mark.parametrize("code", list(RejectCode))
def test_what_may_be_well_later_is_tried_again(
    comeback: Starter, shown_daemon: ShownDaemon, code: RejectCode
) -> None:
    again = {
        RejectCode.TRANSPORT_UNAVAILABLE,
        RejectCode.TOO_MANY_CONNECTIONS,
        RejectCode.PROTOCOL_VIOLATION,
    }
    client = comeback()
    said = refuse(client, shown_daemon, code)
    assert said.startswith("none 0 |" if code in again else "rejected 0 |")
    assert client.do("get") == said, "no time has come for another attempt, or it is given up"
    if code in again:
        grant(client, shown_daemon)
    else:
        assert client.do("wait") == said
        client.do("begin anew")
        grant(client, shown_daemon, "get")


def test_what_a_newer_daemon_refuses_for_is_tried_again(comeback: Starter, shown_daemon: ShownDaemon) -> None:
    client = comeback()
    client.tell("get")
    shown_daemon.accept()
    frame = bytearray(Reject(RejectCode.UNKNOWN_MODEL, "no").encode())
    frame[8] = 77
    shown_daemon.send(bytes(frame))
    assert client.hear().startswith("none 0 |")
    shown_daemon.connection.close()
    grant(client, shown_daemon)


def test_a_daemon_that_ends_every_session_is_tried_more_and_more_seldom(
    comeback: Starter, shown_daemon: ShownDaemon
) -> None:
    client = comeback(20 * MS, 10_000 * MS)
    begin_ns = time.monotonic_ns()
    for _ in range(5):
        grant(client, shown_daemon)
        shown_daemon.connection.close()
        client.until("poll", "none")
    # Between them were at least the lower halves of 20, 40, 80 and 160 ms.
    assert time.monotonic_ns() - begin_ns > 150 * MS


def test_after_a_session_that_lasted_the_pause_is_short_again(
    comeback: Starter, shown_daemon: ShownDaemon
) -> None:
    client = comeback(40 * MS, 41 * MS)
    grant(client, shown_daemon)
    time.sleep(0.05)
    shown_daemon.connection.close()
    assert client.until("poll", "none").startswith("none 1 | the daemon closed the connection")
    grant(client, shown_daemon)
    assert client.do("get") == "session 2"


def test_after_a_goodbye_of_ones_own_there_is_no_pause(comeback: Starter, shown_daemon: ShownDaemon) -> None:
    client = comeback(3_600_000 * MS, 3_600_000 * MS)
    for number in range(1, 4):
        grant(client, shown_daemon, "get")
        assert client.do("goodbye") == f"none session {number}"
        shown_daemon.send(Goodbye().encode())
        shown_daemon.connection.close()
        assert client.do("poll") == f"session {number}", (
            "it meets the end; the next one connects, or never would"
        )


def test_begun_anew_it_tries_at_once_also_after_a_session_that_was_short(
    comeback: Starter, shown_daemon: ShownDaemon
) -> None:
    client = comeback(3_600_000 * MS, 3_600_000 * MS)
    for number in range(1, 3):
        grant(client, shown_daemon, "get")
        shown_daemon.connection.close()
        assert client.do("poll").startswith(f"session {number}"), "it meets the end"
        client.do("begin anew")


def test_a_daemon_that_says_goodbye_first_is_not_stormed(
    comeback: Starter, shown_daemon: ShownDaemon
) -> None:
    client = comeback(3_600_000 * MS, 3_600_000 * MS)
    grant(client, shown_daemon, "get")
    shown_daemon.send(Goodbye(GoodbyeCode.DRAINING).encode())
    shown_daemon.connection.close()
    client.do("poll")
    assert client.do("poll").startswith("none 1 |")
