"""Hello and what it is answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.daemon.serving.frames import HEARTBEAT, header, rejected

from sigd.daemon.serving import session
from sigd.daemon.serving.state import State
from sigd.wire.layout import request_frame_bytes
from sigd.wire.messages import Goodbye, Hello, Welcome
from sigd.wire.status import HelloFlag, RejectCode, Status, Transport

if TYPE_CHECKING:
    from tests.daemon.conftest import Rig

FEATURES = 4
OUTPUTS = 2


@pytest.mark.parametrize(("features", "outputs"), [(0, 0), (FEATURES, OUTPUTS), (FEATURES, 0), (0, OUTPUTS)])
def test_welcome_says_what_is_served(rig: Rig, features: int, outputs: int) -> None:
    client = rig.client()
    client.say(Hello(features, outputs, client_name="engine", model_name="fake").encode())
    (welcome,) = client.received()
    assert welcome == Welcome(
        features=FEATURES,
        outputs=OUTPUTS,
        in_flight_max=256,
        model_generation=1,
        daemon_pid=4321,
        clock_ns=rig.clock.now_ns,
        model_sha256=bytes(range(32)),
        model_name="fake",
    )
    assert client.session.client_name == "engine"
    assert client.session.state is State.SERVING


@pytest.mark.parametrize(
    ("hello", "code", "said"),
    [
        (Hello(features=5), RejectCode.SHAPE_MISMATCH, "5 features, the model has 4"),
        (Hello(outputs=1), RejectCode.SHAPE_MISMATCH, "1 outputs, the model has 2"),
        (Hello(features=2**32 - 1), RejectCode.SHAPE_MISMATCH, "the model has 4"),
        (Hello(model_name="other"), RejectCode.UNKNOWN_MODEL, "'fake' is served, not 'other'"),
        (Hello(model_name="x" * 32), RejectCode.UNKNOWN_MODEL, "'fake' is served, not 'xxx"),
        (
            Hello(transport=Transport.SHARED_MEMORY),
            RejectCode.TRANSPORT_UNAVAILABLE,
            "transport 0 (stream) is",
        ),
        (Hello(transport=77), RejectCode.TRANSPORT_UNAVAILABLE, "transport 77"),
        (Hello(flags=HelloFlag.HISTORY), RejectCode.SHAPE_MISMATCH, "configure [model.history]"),
    ],
)
def test_a_hello_that_cannot_be_served_is_told_why(rig: Rig, hello: Hello, code: int, said: str) -> None:
    client = rig.client()
    client.say(hello.encode())
    reject = rejected(client)
    assert reject.code == code
    assert said in reject.reason
    assert rig.client_counters.rejects[code] == 1


@pytest.mark.parametrize(
    ("first", "code", "said"),
    [
        (header(1, 80, schema=90), RejectCode.UNSUPPORTED_VERSION, "expected 91"),
        (header(1, 80, version=0), RejectCode.UNSUPPORTED_VERSION, "expected at least 1"),
        (header(1, 88), RejectCode.MALFORMED_FRAME, "expected 80"),
        (header(1, 72, version=2), RejectCode.MALFORMED_FRAME, "expected >= 80"),
        (header(1, 81, version=2), RejectCode.MALFORMED_FRAME, "multiple of 8"),
        (header(99, 80), RejectCode.UNEXPECTED_TEMPLATE, "99"),
        (HEARTBEAT, RejectCode.UNEXPECTED_TEMPLATE, "expected Hello"),
        (Goodbye().encode(), RejectCode.UNEXPECTED_TEMPLATE, "expected Hello"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", RejectCode.UNSUPPORTED_VERSION, "expected 91"),
        (bytes(80), RejectCode.UNSUPPORTED_VERSION, "expected 91"),
        (b"\xff" * 80, RejectCode.UNSUPPORTED_VERSION, "expected 91"),
    ],
)
def test_what_is_no_hello_is_rejected(rig: Rig, first: bytes, code: int, said: str) -> None:
    client = rig.client()
    client.say(first)
    reject = rejected(client)
    assert (reject.code, said in reject.reason) == (code, True), reject


def test_a_request_before_hello_is_out_of_order(rig: Rig) -> None:
    client = rig.client()
    client.say(rig.request(1))
    assert rejected(client).code == RejectCode.UNEXPECTED_TEMPLATE
    assert rig.backend.batches == []


def test_a_name_that_is_no_utf8_is_malformed(rig: Rig) -> None:
    hello = bytearray(Hello(client_name="engine").encode())
    hello[24] = 0xFF
    client = rig.client()
    client.say(bytes(hello))
    assert rejected(client).code == RejectCode.MALFORMED_FRAME


def test_a_longer_hello_of_a_newer_version_is_read(rig: Rig) -> None:
    longer = header(1, 80 + 24, version=2) + Hello(features=FEATURES).encode()[8:] + b"\xaa" * 24
    client = rig.client()
    client.say(longer + rig.request(7, 7))
    rig.run()
    welcome, answer = client.received()
    assert isinstance(welcome, Welcome)
    assert answer.sequence == 7  # type: ignore[union-attr]


def test_conflation_is_granted_and_nothing_else(rig: Rig) -> None:
    client = rig.client()
    client.say(Hello(flags=HelloFlag.CONFLATE | 0x8000).encode())
    (welcome,) = client.received()
    assert isinstance(welcome, Welcome)
    assert welcome.flags == HelloFlag.CONFLATE
    assert client.session.conflate


def test_in_flight_is_less_where_requests_are_large(make_rig: type[Rig]) -> None:
    rig = make_rig(inbox_bytes_max=10 * request_frame_bytes(FEATURES))
    client = rig.client()
    client.say(Hello().encode())
    (welcome,) = client.received()
    assert isinstance(welcome, Welcome)
    assert welcome.in_flight_max == 10
    assert make_rig(inbox_bytes_max=1).connect().session.in_flight_max == 1


@pytest.mark.parametrize("what", ["RequestInbox", "ResponseOutbox"])
def test_without_memory_for_a_client_it_is_told_and_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def none_left(*_: object) -> None:
        raise MemoryError

    served, refused = rig.connect(), rig.client()
    with monkeypatch.context() as patched:
        patched.setattr(session, what, none_left)
        refused.say(Hello().encode())
    reject = rejected(refused)
    assert (reject.code, reject.reason) == (
        RejectCode.TOO_MANY_CONNECTIONS,
        "the daemon has no memory for another client",
    )
    refused.lose()
    for client in (served, rig.connect()):
        client.say(rig.request(1))
        rig.run()
        assert client.statuses() == [(1, Status.OK)]
    assert rig.batcher.pending_rows == 0
