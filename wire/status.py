"""The numbers on the wire that have names."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class Status(IntEnum):
    """Outcome of one request, in SignalResponse.status. Outputs are NaN unless it is OK."""

    OK = 0
    EXPIRED = 1  # the deadline passed before the model could run or before the answer could be written
    BUSY = 2  # more than in_flight_max unanswered, or the daemon's own bound was reached
    BAD_INPUT = (
        3  # a feature is infinite, or NaN where the model does not take it, or no integer where it must be
    )
    MODEL_ERROR = 4  # the model failed, or gave NaN or infinity
    DRAINING = 5  # the daemon is stopping or has withdrawn this model
    CONFLATED = 6  # a newer request for the same instrument was already waiting
    WARMING_UP = 7  # the step was stored, but the history of its instrument is not long enough yet
    STORED = 8  # the step was stored as asked, and the model not run


class RejectCode(IntEnum):
    """Why the daemon ended a connection, in Reject.code."""

    MALFORMED_FRAME = 1
    UNSUPPORTED_VERSION = 2  # of the schema, or another schema
    UNEXPECTED_TEMPLATE = 3  # unknown, or out of order
    SHAPE_MISMATCH = 4
    UNKNOWN_MODEL = 5
    TRANSPORT_UNAVAILABLE = 6
    NOT_AUTHORISED = 7
    TOO_MANY_CONNECTIONS = 8
    PROTOCOL_VIOLATION = 9


class GoodbyeCode(IntEnum):
    """Why a side says Goodbye."""

    DONE = 0
    DRAINING = 1
    MODEL_WITHDRAWN = 2


class Transport(IntEnum):
    """How requests and responses travel."""

    STREAM = 0
    SHARED_MEMORY = 1


class HelloFlag(IntFlag):
    """What a client may ask for in Hello.flags and find granted in Welcome.flags."""

    NONE = 0
    CONFLATE = 1  # by instrument
    HISTORY = 2  # kept by the daemon: a request carries one step
    TAKES_NAN = 4  # only in Welcome: this model takes NaN for a missing value


class RequestFlag(IntFlag):
    """What SignalRequest.flags may say where history was granted."""

    NONE = 0
    RESET = 1  # forget the instrument's history before this step is stored
    STORE_ONLY = 2  # store the step and do not run the model


STEP_STORED: Final = frozenset(
    {
        Status.OK,
        Status.EXPIRED,
        Status.MODEL_ERROR,
        Status.CONFLATED,
        Status.WARMING_UP,
        Status.STORED,
    }
)
"""With history: after one of these answers the daemon has the step, after any other one it has not."""
