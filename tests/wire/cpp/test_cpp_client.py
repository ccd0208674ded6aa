"""The C++ client against a daemon that each test plays itself, frame by frame: the stream transport."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sigd.wire import fields
from sigd.wire.layout import frame_dtype, header_word
from sigd.wire.messages import Goodbye, Heartbeat, Hello, ModelInfo, Reject
from sigd.wire.schema.cpp_header import include_dir
from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode, Status, Transport

if TYPE_CHECKING:
    from pathlib import Path

    from tests.wire.conftest import CppBuilder
    from tests.wire.cpp.conftest import CppClient, ShownDaemon


def wait_for(client: CppClient, command: str, said: str) -> None:
    """Until the client says so; it has 10 s."""
    deadline_s = time.monotonic() + 10
    while (last := client.do(command)) != said:
        assert time.monotonic() < deadline_s, last


def open_session(client: CppClient, daemon: ShownDaemon, options: str = "", **granted: Any) -> Hello:
    """Shake hands."""
    client.tell(f"connect path={daemon.path} {options}")
    hello = daemon.accept()
    daemon.send(daemon.welcome(**granted).encode())
    assert client.hear() == "none"
    return hello


@pytest.mark.parametrize("header", sorted(path.name for path in (include_dir() / "sigd").glob("*.hpp")))
def test_each_header_needs_no_other_before_it(cpp: CppBuilder, tmp_path: Path, header: str) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f"#include <sigd/{header}>\n#include <sigd/{header}>\n")
    cpp.check(source, "-fno-exceptions", "-fno-rtti", compiler="g++", standard="c++20")


@pytest.mark.parametrize("standard", ["c++20", "c++2b"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_it_compiles_without_a_warning_and_without_exceptions(
    cpp: CppBuilder, request: pytest.FixtureRequest, compiler: str, standard: str
) -> None:
    driver = request.path.parent / "driver.cpp"
    flags = ("-fsyntax-only",) if (compiler, standard) != ("clang++", "c++2b") else ("-O2",)
    cpp.check(driver, "-fno-exceptions", "-fno-rtti", *flags, compiler=compiler, standard=standard)


# Hello and Welcome


def test_hello_says_what_was_asked_for(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    options = "features=5 outputs=3 model=lob client=engine-7 conflate=1 slots=64"
    hello = open_session(cpp_client, shown_daemon, options, flags=HelloFlag.CONFLATE)
    assert hello == Hello(5, 3, Transport.STREAM, HelloFlag.CONFLATE, 64, "engine-7", "lob")
    assert cpp_client.do("welcome") == "5 3 4 7 4321 1 0 shown 100 4"


def test_hello_asks_for_nothing_by_default(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    assert open_session(cpp_client, shown_daemon) == Hello()


def test_names_that_are_too_long(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    # 23 bytes, then a letter of two: the cut must not leave half of it
    hello = open_session(cpp_client, shown_daemon, f"client={'c' * 23}étail")
    assert hello.client_name == "c" * 23
    cpp_client.do("close")
    assert "model_name has 33 bytes, expected at most 32" in cpp_client.do(
        f"connect path={shown_daemon.path} model={'m' * 33}"
    )
    assert "path has 108 bytes" in cpp_client.do(f"connect path={'/' * 108}")


def test_slots_that_no_ring_has(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    found = cpp_client.do(f"connect path={shown_daemon.path} transport=1 slots=12")
    assert found == "invalid_argument | ring_slots is 12, expected a power of two"


def test_no_daemon_there(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    assert cpp_client.do("connect path=/no/such/socket").startswith(
        "connect_failed | /no/such/socket: there is no such socket; start the daemon"
    )
    shown_daemon.close()
    assert "no daemon listens on it; start the daemon" in cpp_client.do(f"connect path={shown_daemon.path}")
    assert cpp_client.do("send") == "connect_failed | " + cpp_client.do("poll").split(" | ")[1]
    assert cpp_client.do("state").startswith("connect_failed")


def test_before_connect_nothing_works(cpp_client: CppClient) -> None:
    for command in ("send", "queue", "flush", "poll", "wait", "request", "heartbeat", "goodbye"):
        assert cpp_client.do(command) == "not_connected | not connected"
    assert cpp_client.do("in_place") == "no room"
    assert cpp_client.do("close") == ""


def test_connecting_never_waits(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    assert cpp_client.do(f"begin path={shown_daemon.path}").startswith("none")
    assert cpp_client.do("poll_connect") == "connecting"
    assert cpp_client.do("can_send") == "not_connected | connecting"
    shown_daemon.accept()
    assert cpp_client.do("poll_connect") == "connecting"
    welcome = shown_daemon.welcome().encode()
    shown_daemon.send(welcome[:100])
    assert cpp_client.do("poll_connect") == "connecting"
    shown_daemon.send(welcome[100:])
    wait_for(cpp_client, "poll_connect", "open")
    assert cpp_client.do("poll_connect") == "open"
    assert cpp_client.do("can_send") == "none"
    assert cpp_client.do("send") == "ok 0"


def test_connecting_fails_as_connect_does(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    path = shown_daemon.path
    assert cpp_client.do("begin path=/no/such/socket").startswith("none")
    assert cpp_client.do("poll_connect").startswith(
        "connect_failed | /no/such/socket: there is no such socket"
    )
    assert cpp_client.do("poll_connect").startswith("connect_failed")
    cpp_client.do(f"begin path={path}")
    cpp_client.do("poll_connect")
    shown_daemon.accept()
    shown_daemon.send(Reject(RejectCode.UNKNOWN_MODEL, "no").encode())
    wait_for(
        cpp_client, "poll_connect", "rejected | the daemon rejected the session: no (code 5, unknown_model)"
    )
    cpp_client.do(f"begin path={path} timeout_ms=20")
    cpp_client.do("poll_connect")
    wait_for(cpp_client, "poll_connect", f"timed_out | {path}: the daemon did not answer Hello in time")
    cpp_client.do(f"begin path={path}")
    assert cpp_client.do("close") == ""
    assert cpp_client.do("poll_connect").startswith("not_connected")


def test_a_pinned_model_is_served_or_refused(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    digest = 7
    open_session(cpp_client, shown_daemon, f"sha256={digest}", model_sha256=bytes([digest] * 32))
    assert cpp_client.do("send") == "ok 0"
    cpp_client.do("close")
    cpp_client.tell(f"connect path={shown_daemon.path} sha256={digest + 1}")
    shown_daemon.accept()
    shown_daemon.send(shown_daemon.welcome().encode())
    assert "SHA-256 is not the one that was asked for" in cpp_client.hear()
    assert cpp_client.do("state").startswith("wrong_model")


def test_model_info(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("model") == "0 0 0 "
    assert cpp_client.do("ask_model of=4") == "none"
    assert ModelInfo.decode(shown_daemon.read(80)[8:]) == ModelInfo(4)
    shown_daemon.send(ModelInfo(4, bytes([9] * 32), "lob").encode())
    assert cpp_client.do("wait ms=50") == "nothing"
    assert cpp_client.do("model") == "1 4 9 lob"


def test_request_goes_on_after_a_timeout(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("request ms=10") == "nothing"
    assert cpp_client.do("request ms=10") == "nothing"
    shown_daemon.send(shown_daemon.answers(0, 1, 2))
    assert cpp_client.do("request").startswith("answer 2 ")
    assert cpp_client.do("request ms=10") == "nothing"
    shown_daemon.send(shown_daemon.answers(3))
    assert cpp_client.do("wait").startswith("answer 3 ")
    shown_daemon.send(shown_daemon.answers(4))
    assert cpp_client.do("request").startswith("answer 4 ")
    assert cpp_client.do("send") == "ok 5"
    assert cpp_client.do("request") == "invalid_argument"


def test_a_prepared_row_is_zeros(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    for sequence in range(2):
        assert set(cpp_client.do("room").split()) == {"0"}
        assert cpp_client.do("send") == f"ok {sequence}"


def test_a_rejected_hello(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path}")
    shown_daemon.accept()
    shown_daemon.send(Reject(RejectCode.UNKNOWN_MODEL, "x" * 64).encode())
    assert (
        cpp_client.hear() == f"rejected | the daemon rejected the session: {'x' * 64} (code 5, unknown_model)"
    )


def test_a_daemon_that_is_full_need_not_read_hello(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path}")
    connection, _ = shown_daemon.listener.accept()
    connection.sendall(Reject(RejectCode.TOO_MANY_CONNECTIONS, "1024 clients").encode())
    connection.close()
    assert "1024 clients (code 8, too_many_connections)" in cpp_client.hear()


def test_a_daemon_that_hangs_up(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path}")
    shown_daemon.accept()
    shown_daemon.send(shown_daemon.welcome().encode()[:127])
    shown_daemon.connection.close()
    assert cpp_client.hear() == "closed | the daemon closed the connection before its Welcome"


def test_a_daemon_that_does_not_answer(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path} timeout_ms=30")
    shown_daemon.accept()
    shown_daemon.send(shown_daemon.welcome().encode()[:127])
    assert "the daemon did not answer Hello in time" in cpp_client.hear()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Heartbeat(1).encode(), "answered Hello with template 4 of 16 bytes"),
        (b"HTTP/1.1 400\r\n" + bytes(30_000), "another schema"),
        (struct.pack("<Q", header_word(2, 128, version=0)) + bytes(120), "older version"),
        (struct.pack("<Q", header_word(2, 120)) + bytes(112), "template 2 of 120 bytes"),
        (struct.pack("<Q", header_word(2, 136)) + bytes(128), "template 2 of 136 bytes"),
        (struct.pack("<Q", header_word(2, 127)) + bytes(119), "no multiple of 8"),
    ],
)
def test_an_answer_that_is_no_welcome(
    cpp_client: CppClient, shown_daemon: ShownDaemon, answer: bytes, message: str
) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path}")
    shown_daemon.accept()
    shown_daemon.send(answer)
    found = cpp_client.hear()
    assert found.startswith("protocol_broken | ")
    assert message in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 6}, "asked for 5 features (0 is any), the daemon granted 6"),
        ({"outputs": 0}, "asked for 0 outputs (0 is any), the daemon granted 0"),
        ({"outputs": 16_371}, "the daemon granted 16371"),
        ({"transport": Transport.SHARED_MEMORY}, "asked for transport 0, the daemon granted 1"),
        ({"in_flight_max": 0}, "granted no request"),
    ],
)
def test_a_welcome_that_grants_something_else(
    cpp_client: CppClient, shown_daemon: ShownDaemon, changes: dict[str, int], message: str
) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path} features=5")
    shown_daemon.accept()
    shown_daemon.send(shown_daemon.welcome(**changes).encode())
    assert message in cpp_client.hear()


def test_a_welcome_byte_by_byte_from_a_newer_daemon(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path}")
    shown_daemon.accept()
    longer = (
        struct.pack("<Q", header_word(2, 136, version=2)) + shown_daemon.welcome().encode()[8:] + bytes(8)
    )
    for index in range(len(longer)):
        shown_daemon.send(longer[index : index + 1])
    assert cpp_client.hear() == "none"
    assert cpp_client.do("welcome").startswith("5 3 4 7")


def test_what_comes_behind_the_welcome_is_not_lost(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    cpp_client.tell(f"connect path={shown_daemon.path}")
    shown_daemon.accept()
    shown_daemon.send(shown_daemon.welcome().encode() + Goodbye(GoodbyeCode.DRAINING).encode())
    assert cpp_client.hear() == "none"
    assert cpp_client.do("poll") == "nothing"
    assert "goodbye=draining" in cpp_client.do("state")


# Requests and answers


def test_a_request_is_the_contracts_and_so_is_the_answer(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("send instrument=9 deadline=11 time=12") == "ok 0"
    raw = shown_daemon.read(64)
    assert raw[:8] == struct.pack("<HHHH", 56, 10, 91, 1)
    assert raw[60:] == bytes(4), "five features are followed by four bytes of padding"
    (request,) = np.frombuffer(raw, frame_dtype(fields.SIGNAL_REQUEST, 5))
    assert request[["sequence", "client_time_ns", "deadline_ns", "instrument_id"]].tolist() == (0, 12, 11, 9)
    assert (request["flags"], request["reserved"]) == (0, 0)
    assert request["features"].tolist() == [0, 0.125, 0.25, 0.375, 0.5]
    assert cpp_client.do("poll") == "nothing"
    times = {"receive_time_ns": 100, "send_time_ns": 2**64 - 1, "model_generation": 8, "infer_ns": 55}
    shown_daemon.send(
        shown_daemon.answers(0, instrument_id=9, client_time_ns=12, status=0, batch_rows=3, **times)
    )
    assert cpp_client.do("wait") == "answer 0 ok 9 12 100 18446744073709551615 8 55 3 0.25 1.25 2.25"
    assert cpp_client.do("state").endswith("unanswered=")


@pytest.mark.parametrize("status", range(len(Status) + 1))
def test_every_status(cpp_client: CppClient, shown_daemon: ShownDaemon, status: int) -> None:
    names = [one.name.lower() for one in Status] + ["unknown"]
    open_session(cpp_client, shown_daemon)
    cpp_client.do("send")
    shown_daemon.send(shown_daemon.answers(0, status=status, outputs=np.nan))
    assert cpp_client.do("wait").split()[2] == names[status]


def test_requests_queue_until_they_are_flushed(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    assert [cpp_client.do("queue"), cpp_client.do("in_place"), cpp_client.do("queue")] == [
        "ok 0",
        "ok 1",
        "ok 2",
    ]
    assert shown_daemon.unread() == b""
    assert cpp_client.do("flush") == "none"
    requests = shown_daemon.requests(3)
    assert requests["sequence"].tolist() == [0, 1, 2]
    assert requests["features"][:, 0].tolist() == [0, 1, 2]
    shown_daemon.send(shown_daemon.answers(0, 1, 2))
    for sequence in range(3):
        assert cpp_client.do("poll").split()[:2] == ["answer", str(sequence)]
    assert cpp_client.do("poll") == "nothing"


@pytest.mark.parametrize("command", ["poll", "wait ms=0"])
def test_polling_flushes_too(cpp_client: CppClient, shown_daemon: ShownDaemon, command: str) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("queue")
    assert cpp_client.do(command) == "nothing"
    assert shown_daemon.requests(1)["sequence"].tolist() == [0]


def test_answers_byte_by_byte(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("queue")
    cpp_client.do("send")
    found = []
    for byte in shown_daemon.answers(0, 1) + Heartbeat(77).encode():
        shown_daemon.send(bytes([byte]))
        found.append(cpp_client.do("poll"))
    assert [index for index, outcome in enumerate(found) if outcome != "nothing"] == [71, 143]
    assert "beats=1 clock=77" in cpp_client.do("state")


def test_no_more_unanswered_than_granted(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    assert [cpp_client.do("send") for _ in range(5)] == ["ok 0", "ok 1", "ok 2", "ok 3", "in_flight_full"]
    assert cpp_client.do("in_place") == "no room"
    assert len(shown_daemon.requests(4)) == 4
    assert shown_daemon.unread() == b""
    shown_daemon.send(shown_daemon.answers(0))
    cpp_client.until("poll", "answer 0")
    assert cpp_client.do("send") == "ok 4"
    assert cpp_client.do("state").endswith("unanswered=1,2,3,4")


def test_a_bound_of_ones_own(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon, "unanswered=1", in_flight_max=64)
    assert [cpp_client.do("send"), cpp_client.do("send")] == ["ok 0", "in_flight_full"]
    assert cpp_client.do("welcome").endswith(" 1")


def test_a_request_and_its_answer_in_one_call(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.tell("request instrument=3")
    assert shown_daemon.requests(1)["instrument_id"].tolist() == [3]
    shown_daemon.send(shown_daemon.answers(0))
    assert cpp_client.hear().startswith("answer 0 ok")
    cpp_client.do("send")
    assert cpp_client.do("request") == "invalid_argument"


def test_a_row_of_the_wrong_length_is_not_sent(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("short") == "invalid_argument"
    assert cpp_client.do("send") == "ok 0"


def test_sequences_wrap_and_may_be_chosen(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do(f"sequence to={2**64 - 1}")
    assert [cpp_client.do("send"), cpp_client.do("send")] == [f"ok {2**64 - 1}", "ok 0"]
    shown_daemon.send(shown_daemon.answers(2**64 - 1, 0))
    assert cpp_client.do("wait").startswith(f"answer {2**64 - 1} ")
    assert cpp_client.do("wait").startswith("answer 0 ")


@pytest.mark.parametrize("idle", [0, 1, 2])
def test_waiting_comes_to_an_end(cpp_client: CppClient, shown_daemon: ShownDaemon, idle: int) -> None:
    open_session(cpp_client, shown_daemon, f"idle={idle}")
    cpp_client.do("send")
    before_ns = time.monotonic_ns()
    assert cpp_client.do("wait ms=20") == "nothing"
    assert time.monotonic_ns() - before_ns >= 20_000_000
    cpp_client.tell("wait")
    shown_daemon.send(shown_daemon.answers(0))
    assert cpp_client.hear().startswith("answer 0")


def test_a_longer_answer_of_a_newer_daemon(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("queue")
    cpp_client.do("send")
    first, second = shown_daemon.answers(0), shown_daemon.answers(1)
    longer = struct.pack("<Q", header_word(11, 88, version=2)) + first[8:] + b"\xee" * 16
    shown_daemon.send(longer + second)
    assert cpp_client.do("wait") == "answer 0 ok 0 0 0 0 0 0 0 0.25 1.25 2.25"
    assert cpp_client.do("wait").startswith("answer 1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda daemon: daemon.answers(1), "answered sequence 1, expected 0"),
        (lambda daemon: daemon.answers(0, 2), "answered sequence 2, expected 1"),
        (lambda daemon: daemon.answers(0, 1, 2), "nothing was asked"),
        (
            lambda daemon: struct.pack("<Q", header_word(11, 64)) + bytes(56),
            "signal_response of 64 bytes, expected 72",
        ),
        (
            lambda daemon: struct.pack("<Q", header_word(11, 80)) + bytes(72),
            "signal_response of 80 bytes, expected 72",
        ),
        (
            lambda daemon: struct.pack("<Q", header_word(11, 64, version=2)) + bytes(56),
            "of 64 bytes, expected 72",
        ),
        (lambda daemon: struct.pack("<Q", header_word(11, 72, version=0)) + bytes(64), "older version"),
        (lambda daemon: struct.pack("<Q", header_word(11, 71)) + bytes(64), "no multiple of 8"),
        (lambda daemon: bytes(72), "another schema"),
        (lambda daemon: daemon.welcome().encode(), "sent template 2, expected an answer"),
        (lambda daemon: struct.pack("<Q", header_word(99, 16)) + bytes(8), "sent template 99"),
        (
            lambda daemon: struct.pack("<Q", header_word(4, 24)) + bytes(16),
            "heartbeat of 24 bytes, expected 16",
        ),
        (lambda daemon: struct.pack("<Q", header_word(5, 8)), "goodbye of 8 bytes, expected 16"),
        (lambda daemon: struct.pack("<Q", header_word(3, 16)) + bytes(8), "reject of 16 bytes, expected 80"),
    ],
)
def test_answers_that_break_the_contract(
    cpp_client: CppClient, shown_daemon: ShownDaemon, make: object, message: str
) -> None:
    assert callable(make)
    open_session(cpp_client, shown_daemon)
    cpp_client.do("queue")
    cpp_client.do("send")
    shown_daemon.send(make(shown_daemon))
    found = cpp_client.do("wait")
    while found.startswith("answer"):
        found = cpp_client.do("wait")
    assert found.startswith("protocol_broken | ")
    assert message in found
    assert cpp_client.do("send") == found, "it is over, and says so"


# How sessions end


def test_heartbeats(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    assert "beats=0 clock=1000000" in cpp_client.do("state")
    before_ns = time.monotonic_ns()
    assert cpp_client.do("heartbeat") == "none"
    raw = shown_daemon.read(16)
    assert raw[:8] == Heartbeat(0).encode()[:8]
    assert before_ns <= Heartbeat.decode(raw[8:]).clock_ns <= time.monotonic_ns()
    shown_daemon.send(Heartbeat(2_000_000).encode())
    assert cpp_client.do("wait ms=50") == "nothing"
    assert "beats=1 clock=2000000" in cpp_client.do("state")


def test_heartbeats_that_are_not_read_do_not_pile_up(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.until("heartbeat", "in_flight_full", timeout_s=60)
    assert [cpp_client.do("send") for _ in range(4)] == ["ok 0", "ok 1", "ok 2", "ok 3"], (
        "requests have their room"
    )
    cpp_client.tell("wait")
    while (template := shown_daemon.read(8)[2]) == 4:
        shown_daemon.read(8)
    assert template == 10
    shown_daemon.read(56)
    assert shown_daemon.requests(3)["sequence"].tolist() == [1, 2, 3]
    shown_daemon.send(shown_daemon.answers(0))
    assert cpp_client.hear().startswith("answer 0 ")
    assert cpp_client.do("heartbeat") == "none"


def test_goodbye_and_all_is_answered(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("send")
    assert cpp_client.do("goodbye") == "none"
    shown_daemon.requests(1)
    assert shown_daemon.read(16) == Goodbye().encode()
    shown_daemon.send(shown_daemon.answers(0) + Goodbye().encode())
    shown_daemon.connection.close()
    assert cpp_client.do("wait").startswith("answer 0")
    assert cpp_client.do("wait") == "finished | the session has ended, and every request was answered"
    assert "goodbye=done lost=0 unanswered=" in cpp_client.do("state")


def test_a_daemon_that_drains(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    shown_daemon.send(Goodbye(GoodbyeCode.MODEL_WITHDRAWN).encode())
    cpp_client.tell("send")
    assert cpp_client.hear() == "ok 0"
    shown_daemon.send(shown_daemon.answers(0, status=5, outputs=np.nan))
    shown_daemon.connection.close()
    assert cpp_client.do("wait").startswith("answer 0 draining")
    assert "goodbye=model_withdrawn" in cpp_client.do("state")
    assert cpp_client.do("poll").startswith("finished")


def test_a_daemon_that_is_gone(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    for _ in range(3):
        cpp_client.do("send")
    shown_daemon.send(shown_daemon.answers(0) + shown_daemon.answers(1)[:71])
    shown_daemon.connection.close()
    assert cpp_client.do("wait").startswith("answer 0")
    gone = cpp_client.do("wait")
    assert gone == "closed | the daemon closed the connection; 2 requests are unanswered"
    assert "lost=2 unanswered=1,2" in cpp_client.do("state")
    for command in ("send", "queue", "poll", "wait", "request", "heartbeat", "goodbye", "flush"):
        assert cpp_client.do(command) == gone


def test_what_the_daemon_said_before_it_closed(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("send")
    shown_daemon.requests(1)
    shown_daemon.send(shown_daemon.answers(0) + Reject(RejectCode.PROTOCOL_VIOLATION, "enough").encode())
    shown_daemon.connection.close()
    assert cpp_client.do("send") == "ok 1", "it has a number, and counts"
    assert cpp_client.do("send") == "closing", "the socket takes no more, and no number is used"
    assert cpp_client.do("in_place") == "no room"
    assert cpp_client.do("poll").startswith("answer 0 ")
    assert (
        cpp_client.do("poll")
        == "rejected | the daemon rejected the session: enough (code 9, protocol_violation)"
    )
    assert "lost=1 unanswered=1" in cpp_client.do("state")
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("send") == "ok 2", "no number is left out"


def test_a_client_comes_back_and_counts_on(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("send")
    shown_daemon.connection.close()
    cpp_client.until("poll", "closed")
    open_session(cpp_client, shown_daemon, in_flight_max=9)
    assert cpp_client.do("send") == "ok 1"
    shown_daemon.send(shown_daemon.answers(1))
    assert cpp_client.do("wait").startswith("answer 1 ")


def test_connecting_anew_closes_what_was_open(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    first = shown_daemon.connection
    open_session(cpp_client, shown_daemon)
    assert first.recv(100) == Goodbye().encode()
    assert first.recv(100) == b""


def test_closing(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("send")
    assert cpp_client.do("close") == ""
    shown_daemon.requests(1)
    assert shown_daemon.read(16) == Goodbye().encode()
    assert shown_daemon.connection.recv(1) == b""
    assert cpp_client.do("poll") == "closed | this client was closed; 1 requests are unanswered"


def test_a_daemon_that_does_not_read(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    """Requests that the socket does not take wait in the client, and nothing is lost or blocks."""
    shown_daemon.features = 16_000
    count = 64
    open_session(cpp_client, shown_daemon, in_flight_max=count)
    assert [cpp_client.do("send") for _ in range(count)] == [f"ok {number}" for number in range(count)]
    assert cpp_client.do("send") == "in_flight_full"
    dtype = frame_dtype(fields.SIGNAL_REQUEST, 16_000)
    cpp_client.tell("wait")
    requests = np.frombuffer(shown_daemon.read(count * dtype.itemsize), dtype)
    assert requests["sequence"].tolist() == list(range(count))
    assert np.array_equal(requests["features"][:, 0], np.arange(count, dtype=np.float32))
    assert np.array_equal(
        requests["features"][:, -1] - requests["features"][:, 0], np.full(count, 15_999 / 8)
    )
    shown_daemon.send(shown_daemon.answers(*range(count)))
    assert cpp_client.hear().startswith("answer 0 ")
    for number in range(1, count):
        assert cpp_client.do("poll").startswith(f"answer {number} ")


@pytest.mark.parametrize("outputs", [1, 16_370])
def test_answers_of_every_size(cpp_client: CppClient, shown_daemon: ShownDaemon, outputs: int) -> None:
    """More bytes than the client's buffer holds, so that it must make room while an answer is half there."""
    shown_daemon.outputs = outputs
    open_session(cpp_client, shown_daemon, in_flight_max=64)
    for _ in range(20):
        cpp_client.do("queue")
    cpp_client.do("flush")
    shown_daemon.requests(20)
    for _ in range(20):
        cpp_client.tell("wait")
    answers = shown_daemon.answers(*range(20))
    for begin in range(0, len(answers), 50_000):
        shown_daemon.send(answers[begin : begin + 50_000])
    ending = "0.25" if outputs == 1 else "16370 outputs, the last 16369.2"
    for number in range(20):
        assert cpp_client.hear() == f"answer {number} ok 0 0 0 0 0 0 0 {ending}"


# Features written in place


@pytest.mark.parametrize("between", ["flush", "poll", "wait ms=1", "state"])
def test_what_is_prepared_stays_in_its_place(
    cpp_client: CppClient, shown_daemon: ShownDaemon, between: str
) -> None:
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("queue") == "ok 0"
    assert cpp_client.do("prepare") == "ok"
    cpp_client.do(between)
    assert cpp_client.do("commit time=5") == "ok 1"
    cpp_client.do("flush")
    rows = shown_daemon.requests(2)
    assert rows["sequence"].tolist() == [0, 1]
    assert rows["client_time_ns"].tolist() == [0, 5]
    assert rows["features"][:, 0].tolist() == [0.0, 1.0]


def test_prepared_anew_it_may_be_elsewhere(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("queue")
    cpp_client.do("prepare")
    cpp_client.do("flush")
    assert cpp_client.do("send") == "ok 1"
    assert cpp_client.do("commit") == "invalid_argument", "what sends gives up what was prepared"
    rows = shown_daemon.requests(2)
    assert rows["features"][:, 0].tolist() == [0.0, 1.0]
    for number in range(2, 4):
        assert cpp_client.do("in_place") == f"ok {number}"
    cpp_client.do("flush")
    assert shown_daemon.requests(2)["features"][:, 0].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("command", ["heartbeat", "goodbye"])
def test_a_control_message_gives_up_what_was_prepared(
    cpp_client: CppClient, shown_daemon: ShownDaemon, command: str
) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("prepare")
    assert cpp_client.do(command) == "none"
    assert cpp_client.do("commit") == "invalid_argument"
    assert len(shown_daemon.read(16)) == 16
    assert shown_daemon.unread() == b""


def test_the_row_that_is_sent_may_lie_in_the_prepared_place(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    open_session(cpp_client, shown_daemon)
    for number in range(40):
        assert cpp_client.do("prepare") == "ok"
        assert cpp_client.do("send_prepared") == f"ok {number}"
        (row,) = shown_daemon.requests(1)["features"].tolist()
        assert row == [number, number + 0.125, number + 0.25, number + 0.375, number + 0.5]
        shown_daemon.send(shown_daemon.answers(number))
        assert cpp_client.do("wait").startswith(f"answer {number} ")


def test_without_a_prepared_row_nothing_is_committed(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    assert cpp_client.do("commit").startswith("not_connected")
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("commit") == "invalid_argument"
    assert cpp_client.do("prepare") == "ok"
    assert cpp_client.do("commit") == "ok 0"
    assert cpp_client.do("commit") == "invalid_argument"
    cpp_client.do("prepare")
    cpp_client.do("close")
    assert cpp_client.do("commit").startswith("closed")
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("commit") == "invalid_argument", "it was prepared in another session"


def test_after_a_goodbye_nothing_is_sent(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    assert cpp_client.do("send") == "ok 0"
    assert cpp_client.do("goodbye") == "none"
    for command in ("send", "queue", "request"):
        assert cpp_client.do(command) == ("closing" if command != "request" else "invalid_argument")
    assert cpp_client.do("prepare") == "no room"
    assert cpp_client.do("state").endswith("unanswered=0")


def test_an_attempt_to_connect_begins_a_new_ledger(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("send")
    cpp_client.do("close")
    assert "lost=1 unanswered=0" in cpp_client.do("state")
    assert cpp_client.do("connect path=/no/such/socket").startswith("connect_failed")
    assert cpp_client.do("state").endswith("lost=0 unanswered="), "or what is lost would be counted twice"


# An event loop of one's own


def test_it_may_not_sleep_over_an_answer_that_was_read_already(
    cpp_client: CppClient, shown_daemon: ShownDaemon
) -> None:
    open_session(cpp_client, shown_daemon)
    cpp_client.do("queue")
    cpp_client.do("send")
    shown_daemon.send(shown_daemon.answers(0, 1))
    cpp_client.until("poll", "answer 0 ")
    assert cpp_client.do("may_sleep") == "0", "no readable socket would wake it"
    assert cpp_client.do("poll").startswith("answer 1 ")
    assert cpp_client.do("may_sleep") == "1"


def test_it_may_sleep_over_the_socket(cpp_client: CppClient, shown_daemon: ShownDaemon) -> None:
    assert cpp_client.do("sleep").startswith("awake"), "there is nothing to wait for"
    open_session(cpp_client, shown_daemon)
    cpp_client.do("send")
    assert cpp_client.do("sleep ms=1") == "nothing"
    cpp_client.tell("sleep")
    shown_daemon.send(shown_daemon.answers(0))
    assert cpp_client.hear() == "socket"
    assert cpp_client.do("poll").startswith("answer 0")
