"""What can go wrong on the wire, by whose fault it is.

WireError
├── FrameError               bytes that are no valid frame; carries the RejectCode a daemon answers with
├── SessionError             the client's side of a conversation that failed
│   ├── ConnectFailed        no daemon listens there, or the socket may not be opened
│   ├── Rejected             the daemon said Reject: code and reason
│   ├── NoSharedMemory       this machine or this connection cannot have it; a stream it can
│   ├── SessionClosed        the daemon closed the connection; says how many requests were unanswered
│   ├── ReceiveTimeout       no answer within the time given
│   │   └── HelloUnanswered  to Hello: also a ConnectFailed, for the session never began
│   ├── UsedAfterFork        the client belongs to the process that opened it; this is its child
│   └── ProtocolBroken       the daemon answered something that the contract does not allow
├── StepsNotStored           the daemon did not take all steps that were to be the history of an instrument
├── ShapeError               the caller's array or number does not fit what was agreed in Welcome
├── NoRecording              there is no recording where one was looked for
└── RecordingDamaged         a recording is not what its own headers and checksums say; carries where
"""

from __future__ import annotations

from sigd.wire.status import RejectCode, Status


class WireError(Exception):
    """Base of all errors of `sigd.wire`."""


class FrameError(WireError):
    """Bytes that are no valid frame.

    Attributes:
        code: what a daemon that meets them says in its Reject.
    """

    def __init__(self, code: RejectCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class SessionError(WireError):
    """A client's conversation failed."""


class ConnectFailed(SessionError):
    """The daemon could not be reached."""


class Rejected(SessionError):
    """The daemon refused the session or ended it.

    Attributes:
        code: a RejectCode, or the plain number where this side does not know it.
        reason: the daemon's own words.
    """

    def __init__(self, code: int, reason: str) -> None:
        name = RejectCode(code).name if code in RejectCode._value2member_map_ else "unknown code"
        super().__init__(f"the daemon rejected the session: {reason} (code {code}, {name})")
        self.code = code
        self.reason = reason


class NoSharedMemory(SessionError):
    """Shared memory was asked for and cannot be had from this side; connect without it."""


class SessionClosed(SessionError):
    """The connection is closed.

    Attributes:
        unanswered: requests sent on it that got no answer.
    """

    def __init__(self, message: str, *, unanswered: int = 0) -> None:
        super().__init__(message)
        self.unanswered = unanswered


class ReceiveTimeout(SessionError):
    """No answer came within the time given; the session is still open and the answer may still come."""


class HelloUnanswered(ReceiveTimeout, ConnectFailed):
    """The daemon took the connection in and did not answer Hello within the time given."""


class UsedAfterFork(SessionError):
    """The client was opened before fork(), and this process is the child: its session is the parent's."""


class ProtocolBroken(SessionError):
    """The daemon's bytes break the contract."""


class StepsNotStored(WireError):
    """The daemon did not store every step of a fill: fill again, which begins anew.

    Attributes:
        instrument_id: whose steps they are.
        status: of the first that was not stored.
    """

    def __init__(self, instrument_id: int, status: Status) -> None:
        super().__init__(
            f"a step of instrument {instrument_id} was answered {status.name}, expected STORED: fill it"
            " again; BUSY says that the daemon has no room, be it for one more instrument"
        )
        self.instrument_id = instrument_id
        self.status = status


class ShapeError(WireError):
    """The caller's data does not have the shape that the session agreed on."""


class NoRecording(WireError):
    """There is no recording where one was looked for, or it may not be read."""


class RecordingDamaged(WireError):
    """A recording is not what its own headers and checksums say it is.

    Attributes:
        offset: where it is found, in bytes from the start of the file.
        reason: what is wrong there.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"from byte {offset:,} on: {reason}")
        self.offset = offset
        self.reason = reason
