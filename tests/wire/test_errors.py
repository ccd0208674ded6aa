"""The tree of errors: who is whose kind, and what they carry."""

from __future__ import annotations

import inspect

from sigd.wire import errors
from sigd.wire.errors import (
    ConnectFailed,
    FrameError,
    HelloUnanswered,
    NoRecording,
    NoSharedMemory,
    ProtocolBroken,
    ReceiveTimeout,
    RecordingDamaged,
    Rejected,
    SessionClosed,
    SessionError,
    ShapeError,
    StepsNotStored,
    UsedAfterFork,
    WireError,
)
from sigd.wire.status import RejectCode

PARENTS = {
    WireError: Exception,
    FrameError: WireError,
    SessionError: WireError,
    ConnectFailed: SessionError,
    Rejected: SessionError,
    NoSharedMemory: SessionError,
    SessionClosed: SessionError,
    ReceiveTimeout: SessionError,
    HelloUnanswered: ReceiveTimeout,
    UsedAfterFork: SessionError,
    ProtocolBroken: SessionError,
    StepsNotStored: WireError,
    ShapeError: WireError,
    NoRecording: WireError,
    RecordingDamaged: WireError,
}


def test_the_tree_is_the_one_that_the_module_draws() -> None:
    here = {
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert here == set(PARENTS)
    assert {kind: kind.__base__ for kind in PARENTS} == PARENTS
    assert errors.__doc__ is not None
    for kind in PARENTS:
        assert kind.__name__ in errors.__doc__


def test_a_frame_error_carries_what_the_daemon_answers() -> None:
    error = FrameError(RejectCode.SHAPE_MISMATCH, "5 features, expected 6")
    assert (error.code, error.reason, str(error)) == (4, "5 features, expected 6", "5 features, expected 6")


def test_rejected_names_its_code() -> None:
    error = Rejected(5, "no such model")
    assert (error.code, error.reason) == (5, "no such model")
    assert str(error) == "the daemon rejected the session: no such model (code 5, UNKNOWN_MODEL)"


def test_rejected_with_a_code_of_a_newer_daemon() -> None:
    assert "(code 77, unknown code)" in str(Rejected(77, "?"))


def test_closed_counts_what_was_not_answered() -> None:
    assert SessionClosed("gone").unanswered == 0
    assert SessionClosed("gone", unanswered=3).unanswered == 3
