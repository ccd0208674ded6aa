"""One session as the client sees it, without I/O: answers, what the daemon says besides, and how it all
ends."""

from __future__ import annotations

from collections.abc import Callable

from sigd.wire import fields
from sigd.wire.client.response_inbox import ResponseInbox
from sigd.wire.client.unanswered import Unanswered
from sigd.wire.errors import (
    FrameError,
    ProtocolBroken,
    Rejected,
    SessionClosed,
    SessionError,
    UsedAfterFork,
)
from sigd.wire.framer import Frame
from sigd.wire.messages import Goodbye, Heartbeat, ModelInfo, Reject
from sigd.wire.status import RejectCode


class Conversation:
    """
    Attributes:
        inbox: answers that came and were not taken yet.
        unanswered: requests whose answers were not taken yet.
        goodbye_code: of the daemon's Goodbye once it has come, else None.
        heartbeats: how many the daemon has sent.
        daemon_clock_ns: what the last of them said.
        model_infos: answers to questions after a model that came and were not taken yet.
        over: nothing more is sent, and nothing more comes.
    """

    def __init__(self, outputs: int) -> None:
        """Raises ValueError where no frame can carry that many outputs."""
        self.inbox = ResponseInbox(outputs)
        self.unanswered = Unanswered()
        self.goodbye_code: int | None = None
        self.heartbeats = 0
        self.daemon_clock_ns = 0
        self.model_infos: list[ModelInfo] = []
        self.over = False
        self._end: Callable[[int], SessionError] | None = None

    @property
    def lost(self) -> int:
        """Requests without an answer so far."""
        return max(0, len(self.unanswered) - self.inbox.rows)

    def act(self, frame: Frame) -> None:
        """Act on a frame that is no answer. Raises FrameError where it does not decode."""
        template_id = frame.header.template_id
        if template_id == fields.HEARTBEAT.template_id:
            self.daemon_clock_ns = Heartbeat.decode(frame.block).clock_ns
            self.heartbeats += 1
        elif template_id == fields.GOODBYE.template_id:
            self.goodbye_code = Goodbye.decode(frame.block).code
        elif template_id == fields.MODEL_INFO.template_id:
            self.model_infos.append(ModelInfo.decode(frame.block))
        elif template_id == fields.REJECT.template_id:
            reject = Reject.decode(frame.block)
            self._ended(lambda _: Rejected(reject.code, reject.reason))
        else:
            self.broken(f"the daemon sent template {template_id}, expected an answer or a control message")

    def closed(self, why: str) -> None:
        """The session ends because the connection does."""
        self._ended(lambda lost: SessionClosed(f"{why}; {lost} requests are unanswered", unanswered=lost))

    def broken(self, message: str) -> None:
        """The session ends because the daemon left the contract."""
        self._ended(lambda _: ProtocolBroken(message))

    def no_frame(self, error: FrameError) -> None:
        """As `broken`, where that was found in its bytes or in its rings."""
        if error.code == RejectCode.PROTOCOL_VIOLATION:
            self.broken(f"the daemon broke the rules of shared memory: {error.reason}")
        else:
            self.broken(f"the daemon sent bytes that are no valid frame: {error.reason}")

    def forked(self, parent_pid: int) -> None:
        """This process is a child of the one that opened the session: answers that wait here are the
        parent's."""
        self.inbox.take(self.inbox.rows)
        self._ended(
            lambda _: UsedAfterFork(
                f"this client was opened by process {parent_pid} before fork(), which uses it on: connect"
                " anew in this process"
            )
        )

    def _ended(self, end: Callable[[int], SessionError]) -> None:
        self._end = end
        self.over = True

    def error(self) -> SessionError:
        """Why the session is over. Made anew each time: an instance kept would collect tracebacks."""
        assert self._end is not None
        return self._end(self.lost)
