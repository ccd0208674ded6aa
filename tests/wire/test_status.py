"""Named numbers of the wire, typed by hand from the contract's page."""

from __future__ import annotations

from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode, Status, Transport


def test_statuses() -> None:
    assert [(status.value, status.name) for status in Status] == [
        (0, "OK"),
        (1, "EXPIRED"),
        (2, "BUSY"),
        (3, "BAD_INPUT"),
        (4, "MODEL_ERROR"),
        (5, "DRAINING"),
        (6, "CONFLATED"),
        (7, "WARMING_UP"),
        (8, "STORED"),
    ]


def test_reject_codes() -> None:
    assert [(code.value, code.name) for code in RejectCode] == [
        (1, "MALFORMED_FRAME"),
        (2, "UNSUPPORTED_VERSION"),
        (3, "UNEXPECTED_TEMPLATE"),
        (4, "SHAPE_MISMATCH"),
        (5, "UNKNOWN_MODEL"),
        (6, "TRANSPORT_UNAVAILABLE"),
        (7, "NOT_AUTHORISED"),
        (8, "TOO_MANY_CONNECTIONS"),
        (9, "PROTOCOL_VIOLATION"),
    ]


def test_goodbye_transport_and_flags() -> None:
    assert [(code.value, code.name) for code in GoodbyeCode] == [
        (0, "DONE"),
        (1, "DRAINING"),
        (2, "MODEL_WITHDRAWN"),
    ]
    assert [(kind.value, kind.name) for kind in Transport] == [(0, "STREAM"), (1, "SHARED_MEMORY")]
    assert [(flag.value, flag.name) for flag in HelloFlag] == [
        (1 << 0, "CONFLATE"),
        (1 << 1, "HISTORY"),
        (1 << 2, "TAKES_NAN"),
    ]
