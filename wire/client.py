"""A synchronous client in Python: the engine's side of the conversation over a Unix socket.

    with connect("/run/sigd/sigd.sock", features=64, outputs=3) as client:
        response = client.request(features_row)

Requests may be pipelined: any number of `send` before the first `receive`; answers come in the order of the requests
and each is checked to echo the sequence of the request that it answers. While a send waits for room the answers are
read and kept, so that a client and a daemon that both wait for room cannot lock each other up. Not thread-safe: one
client, one thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from sigd.wire import fields
from sigd.wire.dial import open_connection, shake_hands
from sigd.wire.errors import (
    FrameError,
    ProtocolBroken,
    ReceiveTimeout,
    Rejected,
    SessionClosed,
    SessionError,
)
from sigd.wire.framer import Frame
from sigd.wire.greeting import check_hello
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome
from sigd.wire.request_outbox import RequestOutbox
from sigd.wire.response_inbox import Response, ResponseInbox
from sigd.wire.status import HelloFlag
from sigd.wire.unanswered import Unanswered

_POLL_S_MAX: Final = 60.0  # poll() has no infinity; whoever waits longer asks again
_DAEMON_CLOSED: Final = "the daemon closed the connection"


def connect(
    path: str | os.PathLike[str],
    *,
    features: int = 0,
    outputs: int = 0,
    model_name: str = "",
    client_name: str = "",
    conflate: bool = False,
    timeout_s: float = 5.0,
    spin: bool = False,
) -> Client:
    """Open a session: connect, say Hello, wait for Welcome.

    Args:
        path: the daemon's Unix socket.
        features: features per request that will be sent; 0 takes the model's.
        outputs: outputs per answer that are expected; 0 takes the model's.
        model_name: at most 32 bytes of UTF-8; empty is the daemon's default model.
        client_name: for the daemon's logs and metrics; cut after 24 bytes of UTF-8.
        conflate: ask that a request be answered CONFLATED once a newer one of its instrument waits.
        timeout_s: for the handshake, and for every later call that names none; math.inf waits for ever.
        spin: never sleep while waiting for an answer; lowest latency, one core busy meanwhile.

    Raises:
        ConnectFailed: nobody listens there, or the socket may not be opened.
        Rejected: the daemon refused: code and reason.
        SessionClosed, ReceiveTimeout, ProtocolBroken: the daemon did not answer Hello as the contract says.
        ShapeError: a name or number that Hello cannot carry.
    """
    hello = Hello(
        features=features,
        outputs=outputs,
        flags=HelloFlag.CONFLATE if conflate else HelloFlag.NONE,
        client_name=client_name,
        model_name=model_name,
    )
    check_hello(hello)
    deadline_s = time.monotonic() + timeout_s
    connection = open_connection(os.fspath(path), timeout_s)
    try:
        welcome, rest = shake_hands(connection, hello, deadline_s)
        return Client(connection, welcome, rest, timeout_s=timeout_s, spin=spin)
    except BaseException:
        connection.close()
        raise


class Client:
    """One open session; `connect` makes it.

    Attributes:
        welcome: what the daemon granted.
        goodbye_code: the code of the daemon's Goodbye once it has come, else None.
    """

    def __init__(
        self, connection: socket.socket, welcome: Welcome, rest: bytes, *, timeout_s: float, spin: bool
    ) -> None:
        """Take over a connection after its handshake; `rest` is what came behind the Welcome."""
        self.welcome = welcome
        self.goodbye_code: int | None = None
        self._socket = connection
        self._timeout_s = timeout_s
        self._spin = spin
        self._outbox = RequestOutbox(welcome.features)
        self._inbox = ResponseInbox(welcome.outputs)
        self._unanswered = Unanswered()
        self._heartbeats = 0
        self._daemon_clock_ns = 0
        self._end: Callable[[], SessionError] | None = None
        connection.setblocking(False)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._either = select.poll()
        self._either.register(connection, select.POLLIN | select.POLLOUT)
        self._inbox.feed(rest)
        self._scan()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def unanswered(self) -> int:
        """Requests sent whose answers were not taken yet."""
        return len(self._unanswered)

    def fileno(self) -> int:
        """The socket, for a caller's own poll; answers that `receive` has read ahead do not show on it."""
        return self._socket.fileno()

    def send(
        self,
        features: npt.ArrayLike,
        *,
        sequence: int | None = None,
        client_time_ns: int | None = None,
        deadline_ns: int = 0,
        instrument_id: int = 0,
    ) -> int:
        """Send one request and return its sequence; its answer comes by `receive`.

        Args:
            features: welcome.features numbers; more than one axis is flattened in C order.
            sequence: echoed; None is one more than the last.
            client_time_ns: echoed; None is time.monotonic_ns().
            deadline_ns: CLOCK_MONOTONIC after which the answer is worthless (EXPIRED); 0 is none.

        Raises:
            ShapeError: not that many features, or a number that its field cannot hold; nothing was sent.
            Rejected, SessionClosed, ProtocolBroken: the session has ended, or ends because the daemon took no bytes
                within the session's timeout; the request counts as unanswered.
        """
        if sequence is None:
            sequence = self._unanswered.next_sequence
        if client_time_ns is None:
            client_time_ns = time.monotonic_ns()
        frame = self._outbox.encode_lone(features, sequence, client_time_ns, deadline_ns, instrument_id)
        self._unanswered.append(sequence)
        self._transmit(frame)
        return sequence

    def send_many(
        self,
        features: npt.ArrayLike,
        *,
        sequences: npt.ArrayLike | None = None,
        client_time_ns: npt.ArrayLike | None = None,
        deadline_ns: npt.ArrayLike = 0,
        instrument_id: npt.ArrayLike = 0,
    ) -> npt.NDArray[np.uint64]:
        """Send k requests back to back and return their sequences, shape (k,).

        Args:
            features: shape (k, n).
            sequences: shape (k,); None counts on from the last.
            client_time_ns, deadline_ns, instrument_id: one for all, or shape (k,); as in `send`.

        More than welcome.in_flight_max unanswered is allowed; the daemon answers what is too much with BUSY.

        Raises:
            ShapeError: as `send`; nothing was sent.
            Rejected, SessionClosed, ProtocolBroken: as `send`.
        """
        if client_time_ns is None:
            client_time_ns = time.monotonic_ns()
        rows = self._outbox.as_rows(features)
        if sequences is None:
            sequences = self._unanswered.next_sequences(len(rows))
        columns = self._outbox.as_columns(len(rows), sequences, client_time_ns, deadline_ns, instrument_id)
        sent: npt.NDArray[np.uint64] = columns[0]
        for first in range(0, len(rows), self._outbox.rows_max):
            part = slice(first, first + self._outbox.rows_max)
            frames = self._outbox.encode(rows[part], columns[:, part])
            self._unanswered.extend(sent[part])
            self._transmit(frames)
        return sent

    def receive(self, timeout_s: float | None = None) -> Response:
        """The next answer; waits for it.

        Args:
            timeout_s: None is the session's; 0 does not wait; math.inf waits for ever.

        Raises:
            ReceiveTimeout: it did not come in time; it may still come.
            Rejected, SessionClosed: the session has ended, and all answers that came before were taken.
            ProtocolBroken: an answer that nobody asked for, in the wrong order, or no valid frame.
        """
        if not self._inbox.rows:
            self._wait_for_rows(1, timeout_s)
        response = self._inbox.take_one()
        try:
            self._unanswered.answer(response.sequence)
        except ProtocolBroken as error:
            raise self._broken(str(error)) from None
        return response

    def receive_many(self, count: int | None = None, timeout_s: float | None = None) -> npt.NDArray[np.void]:
        """The next `count` answers, or with None all that have come and at least one; waits for them.

        Returns:
            A structured array with the fields of SignalResponse (layout.frame_dtype); "outputs" is float32, (k, m).

        Raises:
            As `receive`. After ReceiveTimeout no answer is lost: those that came wait for the next call.
        """
        wanted = 1 if count is None else count
        while self._inbox.rows < wanted or count is None:
            if not self._read():
                break
        if self._inbox.rows < wanted:
            self._wait_for_rows(wanted, timeout_s)
        taken = self._inbox.take(self._inbox.rows if count is None else count)
        try:
            self._unanswered.answer_many(taken["sequence"])
        except ProtocolBroken as error:
            raise self._broken(str(error)) from None
        return taken

    def request(
        self,
        features: npt.ArrayLike,
        *,
        deadline_ns: int = 0,
        instrument_id: int = 0,
        timeout_s: float | None = None,
    ) -> Response:
        """Send one request and wait for its answer; as `send` and `receive`, and nothing else may be unanswered."""
        if self._unanswered:
            raise RuntimeError(
                f"{self.unanswered} requests are unanswered, expected none: receive them before request()"
            )
        self.send(features, deadline_ns=deadline_ns, instrument_id=instrument_id)
        return self.receive(timeout_s)

    def heartbeat(self, timeout_s: float | None = None) -> int:
        """Ask for a sign of life and return the daemon's CLOCK_MONOTONIC. Answers that come meanwhile are kept.

        Raises:
            ReceiveTimeout: no sign of life within the time given.
            Rejected, SessionClosed, ProtocolBroken: the session has ended.
        """
        before = self._heartbeats
        self._transmit(Heartbeat(time.monotonic_ns()).encode())
        deadline_s = self._deadline_s(timeout_s)
        while self._heartbeats == before:
            self._advance(deadline_s, "no Heartbeat came back")
        return self._daemon_clock_ns

    def goodbye(self, timeout_s: float | None = None) -> npt.NDArray[np.void]:
        """End the session in order: say Goodbye, collect the answers to all that was sent, see the daemon close.

        Returns:
            The answers, as `receive_many`; often empty. The client is closed.

        Raises:
            As `receive`; SessionClosed only where requests stay unanswered.
        """
        with contextlib.suppress(SessionClosed):  # a daemon that drains may have closed already
            self._transmit(Goodbye().encode())
        deadline_s = self._deadline_s(timeout_s)
        while self._end is None:
            self._advance(deadline_s, "the daemon did not close the connection after Goodbye")
        error = self._end()
        if not isinstance(error, SessionClosed) or error.unanswered:
            raise error
        answers = self.receive_many(self._inbox.rows)
        self.close()
        return answers

    def close(self) -> None:
        """Close at once, with a Goodbye where it can be said without waiting; unanswered requests are given up."""
        if self._socket.fileno() < 0:
            return
        if self._end is None:
            with contextlib.suppress(OSError):
                self._socket.send(Goodbye().encode())
            self._end_closed("this client was closed")
        self._socket.close()

    # What follows waits, reads and writes.

    def _deadline_s(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)

    def _wait_for_rows(self, rows: int, timeout_s: float | None) -> None:
        deadline_s = self._deadline_s(timeout_s)
        while self._inbox.rows < rows:
            self._advance(deadline_s, f"{self._inbox.rows} of {rows} answers came")

    def _advance(self, deadline_s: float, so_far: str) -> None:
        """Read what has arrived, or wait for something to arrive."""
        if self._end is not None:
            raise self._end()
        if self._read():
            return
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise ReceiveTimeout(f"{so_far} within the time given; {self.unanswered} requests are unanswered")
        if not self._spin:
            self._readable.poll(min(left_s, _POLL_S_MAX) * 1e3)

    def _read(self) -> bool:
        """Take in what has arrived; False where nothing has, or nothing can any more."""
        if self._end is not None:
            return False
        try:
            count_bytes = self._socket.recv_into(self._inbox.writable())
        except BlockingIOError:
            return False
        except OSError as error:
            self._end_closed(f"{_DAEMON_CLOSED} ({error.strerror})")
            return True
        if count_bytes == 0:
            self._end_closed(_DAEMON_CLOSED)
            return True
        self._inbox.arrived(count_bytes)
        self._scan()
        return True

    def _scan(self) -> None:
        try:
            while self._end is None and (frame := self._inbox.scan()) is not None:
                self._act(frame)
        except FrameError as error:
            reason = error.reason
            self._end = lambda: ProtocolBroken(f"the daemon sent bytes that are no valid frame: {reason}")

    def _act(self, frame: Frame) -> None:
        template_id = frame.header.template_id
        if template_id == fields.HEARTBEAT.template_id:
            self._daemon_clock_ns = Heartbeat.decode(frame.block).clock_ns
            self._heartbeats += 1
        elif template_id == fields.GOODBYE.template_id:
            self.goodbye_code = Goodbye.decode(frame.block).code
        elif template_id == fields.REJECT.template_id:
            reject = Reject.decode(frame.block)
            self._end = lambda: Rejected(reject.code, reject.reason)
        else:
            self._end = lambda: ProtocolBroken(
                f"the daemon sent template {template_id}, expected an answer or a control message"
            )

    def _transmit(self, frames: memoryview | bytes) -> None:
        if self._end is not None:
            raise self._end()
        try:
            sent_bytes = self._send_some(frames)
            if sent_bytes < len(frames):
                self._transmit_rest(memoryview(frames)[sent_bytes:])
        except BaseException:
            # Half a frame may be out, so nothing can follow it; a Ctrl-C ends here too.
            if self._end is None:
                self._end_closed("a send was broken off")
            self._socket.close()
            raise

    def _transmit_rest(self, left: memoryview) -> None:
        """The socket is full: read while waiting for room, or two sides that only write would wait for ever."""
        deadline_s = self._deadline_s(None)
        while left:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                self._end_closed(f"the daemon took no bytes for {self._timeout_s} s")
                raise self._ended()
            self._either.poll(min(left_s, _POLL_S_MAX) * 1e3)
            if self._read() and self._end is not None:
                raise self._ended()
            if sent_bytes := self._send_some(left):
                left = left[sent_bytes:]
                deadline_s = self._deadline_s(None)

    def _send_some(self, frames: memoryview | bytes) -> int:
        try:
            return self._socket.send(frames)
        except BlockingIOError:
            return 0
        except OSError as error:
            # The daemon may have said why before it closed.
            while self._read():
                pass
            if self._end is None:
                self._end_closed(f"{_DAEMON_CLOSED} ({error.strerror})")
            raise self._ended() from error

    # How a session ends: errors are made anew each time, an instance kept would collect tracebacks.

    def _ended(self) -> SessionError:
        assert self._end is not None
        return self._end()

    def _end_closed(self, why: str) -> None:
        def closed() -> SessionClosed:
            lost = max(0, self.unanswered - self._inbox.rows)
            return SessionClosed(f"{why}; {lost} requests are unanswered", unanswered=lost)

        self._end = closed

    def _broken(self, message: str) -> ProtocolBroken:
        self._end = lambda: ProtocolBroken(message)
        return ProtocolBroken(message)
