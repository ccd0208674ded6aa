"""A synchronous client in Python: the engine's side of the conversation, over a Unix socket or in shared
memory.

    with connect("/run/sigd/sigd.sock", features=64, outputs=3) as client:
        response = client.request(features_row)

Requests may be pipelined: any number of `send` before the first `receive`; answers come in the order of the
requests and each is checked to echo the sequence of the request that it answers. While a send waits for room
the answers are read and kept, so that a client and a daemon that both wait for room cannot lock each other
up. All that holds for both transports. Not thread-safe: one client, one thread. After fork() the parent alone
may use it: in the child each call raises UsedAfterFork, and a child that needs a session connects anew.
"""

from __future__ import annotations

import contextlib
import os
import time
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from sigd.wire.client.carrier import Carrier
from sigd.wire.client.connect import open_connection, shake_hands
from sigd.wire.client.conversation import Conversation
from sigd.wire.client.exchange import Exchange
from sigd.wire.client.handshake import check_hello
from sigd.wire.client.request_outbox import RequestOutbox
from sigd.wire.client.response_inbox import Response
from sigd.wire.client.ring_carrier import RingCarrier
from sigd.wire.client.stream_carrier import StreamCarrier
from sigd.wire.errors import (
    NoSharedMemory,
    ProtocolBroken,
    ReceiveTimeout,
    SessionClosed,
    ShapeError,
    StepsNotStored,
)
from sigd.wire.messages import Goodbye, Heartbeat, Hello, ModelInfo, Welcome
from sigd.wire.ring import why_not_here
from sigd.wire.status import HelloFlag, RequestFlag, Status, Transport


def connect(
    path: str | os.PathLike[str],
    *,
    features: int = 0,
    outputs: int = 0,
    model_name: str = "",
    client_name: str = "",
    conflate: bool = False,
    history: bool = False,
    shared_memory: bool = False,
    ring_slots: int = 0,
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
        history: the daemon keeps the steps that came before, of each instrument: a request carries one step,
            see `Client.step`.
        shared_memory: requests and answers travel in rings that the daemon shares with this process; it must
            run on the daemon's host. Faster, and while both sides are awake without a system call.
        ring_slots: how many requests may be unanswered in shared memory, a power of two; 0 is the daemon's
            default.
        timeout_s: for the handshake, and for every later call that names none; math.inf waits for ever.
        spin: never sleep while waiting for an answer; lowest latency, one core busy meanwhile, and the
            interpreter's other threads held up.

    Raises:
        ConnectFailed: no daemon listens there, or the socket may not be opened.
        Rejected: the daemon refused: code and reason.
        NoSharedMemory: asked for, and not to be had from here: connect without it.
        HelloUnanswered: the daemon did not answer Hello in time.
        SessionClosed, ProtocolBroken: the daemon did not answer Hello as the contract says.
        ShapeError: a name or number that Hello cannot carry.
    """
    hello = Hello(
        features=features,
        outputs=outputs,
        transport=Transport.SHARED_MEMORY if shared_memory else Transport.STREAM,
        flags=(HelloFlag.CONFLATE if conflate else HelloFlag.NONE)
        | (HelloFlag.HISTORY if history else HelloFlag.NONE),
        ring_slots=ring_slots,
        client_name=client_name,
        model_name=model_name,
    )
    check_hello(hello)
    if shared_memory and (refused := why_not_here()):
        raise NoSharedMemory(f"{refused}; connect with the stream transport")
    deadline_s = time.monotonic() + timeout_s
    with contextlib.ExitStack() as undo:
        connection = undo.enter_context(open_connection(os.fspath(path), timeout_s))
        granted = shake_hands(connection, hello, deadline_s)
        for number in granted.descriptors:
            undo.callback(os.close, number)
        talk = Conversation(granted.welcome.outputs)
        carrier: Carrier
        if shared_memory:
            carrier = RingCarrier(connection, granted, talk.inbox, spin=spin)
        else:
            carrier = StreamCarrier(connection, talk.inbox, granted.rest, spin=spin)
        client = Client(Exchange(carrier, talk, timeout_s), granted.welcome)
        undo.pop_all()
    return client


class Client:
    """One open session; `connect` makes it.

    Attributes:
        welcome: what the daemon granted.
    """

    def __init__(self, exchange: Exchange, welcome: Welcome) -> None:
        """Take over after the handshake."""
        self.welcome = welcome
        self._exchange = exchange
        self._talk = exchange.talk
        self._inbox = exchange.talk.inbox
        self._unanswered = exchange.talk.unanswered
        self._outbox = RequestOutbox(welcome.features)
        self._given_up = 0  # the oldest unanswered requests, which request() waits for no more
        self._offer_requests = exchange.carrier.offer_requests
        self._offer_control = exchange.carrier.offer_control

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

    @property
    def goodbye_code(self) -> int | None:
        """The code of the daemon's Goodbye once it has come, else None."""
        return self._talk.goodbye_code

    def fileno(self) -> int:
        """The socket, for a caller's own poll. Answers that `receive` has read ahead do not show on it, and
        with shared memory none do."""
        return self._exchange.carrier.fileno()

    def send(
        self,
        features: npt.ArrayLike,
        *,
        sequence: int | None = None,
        client_time_ns: int | None = None,
        deadline_ns: int = 0,
        instrument_id: int = 0,
        flags: int = RequestFlag.NONE,
    ) -> int:
        """Send one request and return its sequence; its answer comes by `receive`.

        Args:
            features: welcome.features numbers; more than one axis is flattened in C order.
            sequence: echoed; None is one more than the last.
            client_time_ns: echoed; None is time.monotonic_ns().
            deadline_ns: CLOCK_MONOTONIC after which the answer is worthless (EXPIRED); 0 is none.
            flags: with history, what happens to the instrument's steps.

        Raises:
            ShapeError: not that many features, or a number that its field cannot hold, or flags without
                history; nothing was sent.
            Rejected, SessionClosed, ProtocolBroken: the session has ended, or ends because the daemon made no
                room within the session's timeout; the request counts as unanswered.

        In shared memory no more than welcome.ring_slots are unanswered on the daemon's side: one more waits
        until the oldest answer has come, and is then on its way.
        """
        if sequence is None:
            sequence = self._unanswered.next_sequence
        if client_time_ns is None:
            client_time_ns = time.monotonic_ns()
        if flags:
            self._need_history()
        frame = self._outbox.encode_single(
            features, sequence, client_time_ns, deadline_ns, instrument_id, flags
        )
        self._unanswered.append(sequence)
        self._exchange.transmit(self._offer_requests, frame)
        return sequence

    def send_many(
        self,
        features: npt.ArrayLike,
        *,
        sequences: npt.ArrayLike | None = None,
        client_time_ns: npt.ArrayLike | None = None,
        deadline_ns: npt.ArrayLike = 0,
        instrument_id: npt.ArrayLike = 0,
        flags: npt.ArrayLike = RequestFlag.NONE,
    ) -> npt.NDArray[np.uint64]:
        """Send k requests back to back and return their sequences, shape (k,).

        Args:
            features: shape (k, n).
            sequences: shape (k,); None counts on from the last.
            client_time_ns, deadline_ns, instrument_id, flags: one for all, or shape (k,); as in `send`.

        More than welcome.in_flight_max unanswered is allowed: on a stream the daemon answers what is too much
        with BUSY, in shared memory this waits, see `send`.

        Raises:
            ShapeError: as `send`; nothing was sent.
            Rejected, SessionClosed, ProtocolBroken: as `send`.
        """
        if client_time_ns is None:
            client_time_ns = time.monotonic_ns()
        rows = self._outbox.as_rows(features)
        if sequences is None:
            sequences = self._unanswered.next_sequences(len(rows))
        columns = self._outbox.as_columns(
            len(rows), sequences, client_time_ns, deadline_ns, instrument_id, flags
        )
        if columns[-1].any():
            self._need_history()
        sent: npt.NDArray[np.uint64] = columns[0]
        for first in range(0, len(rows), self._outbox.rows_max):
            part = slice(first, first + self._outbox.rows_max)
            frames = self._outbox.encode(rows[part], columns[:, part])
            self._unanswered.extend(sent[part])
            self._exchange.transmit(self._offer_requests, frames)
        return sent

    def receive(self, timeout_s: float | None = None) -> Response:
        """The next answer; waits for it.

        Args:
            timeout_s: None is the session's; 0 does not wait; math.inf waits for ever.

        Raises:
            ReceiveTimeout: it did not come in time; it may still come.
            Rejected, SessionClosed: the session has ended, and all answers that came before were taken.
            ProtocolBroken: an answer without a request, in the wrong order, or no valid frame.
        """
        if not self._inbox.rows:
            self._wait_for_rows(1, timeout_s)
        response = self._inbox.take_one()
        self._given_up -= self._given_up > 0
        try:
            self._unanswered.answer(response.sequence)
        except ProtocolBroken as error:
            self._talk.broken(str(error))
            raise
        return response

    def receive_many(self, count: int | None = None, timeout_s: float | None = None) -> npt.NDArray[np.void]:
        """The next `count` answers, or with None all that have come and at least one; waits for them.

        Returns:
            A structured array with the fields of SignalResponse (layout.frame_dtype); "outputs" is float32,
            (k, m).

        Raises:
            As `receive`. After ReceiveTimeout no answer is lost: those that came wait for the next call.
        """
        wanted = 1 if count is None else count
        while self._inbox.rows < wanted or count is None:
            if not self._exchange.read():
                break
        if self._inbox.rows < wanted:
            self._wait_for_rows(wanted, timeout_s)
        taken = self._inbox.take(self._inbox.rows if count is None else count)
        self._given_up = max(0, self._given_up - len(taken))
        try:
            self._unanswered.answer_many(taken["sequence"])
        except ProtocolBroken as error:
            self._talk.broken(str(error))
            raise
        return taken

    def request(
        self,
        features: npt.ArrayLike,
        *,
        deadline_ns: int = 0,
        instrument_id: int = 0,
        timeout_s: float | None = None,
    ) -> Response:
        """Send one request and wait for its answer; as `send` and `receive`, and nothing else may be
        unanswered, but what an earlier `request` gave up waiting for: its answer is dropped when it
        comes."""
        return self._answer_to(features, deadline_ns, instrument_id, RequestFlag.NONE, timeout_s)

    def step(
        self,
        instrument_id: int,
        row: npt.ArrayLike,
        *,
        reset: bool = False,
        deadline_ns: int = 0,
        timeout_s: float | None = None,
    ) -> Response:
        """With history: send the newest step of an instrument and wait for the answer to its window.

        Args:
            row: welcome.features numbers.
            reset: forget what came before it.

        Returns:
            The answer; its status is WARMING_UP until welcome.history_steps steps are there.

        Raises:
            As `request`; ShapeError where no history was asked for.
        """
        self._need_history()
        flags = RequestFlag.RESET if reset else RequestFlag.NONE
        return self._answer_to(row, deadline_ns, instrument_id, flags, timeout_s)

    def fill(self, instrument_id: int, rows: npt.ArrayLike, timeout_s: float | None = None) -> None:
        """With history: make these the steps of an instrument, oldest first, in place of what the daemon has;
        after a reconnect the next `step` is then answered at once. Nothing else may be unanswered.

        Args:
            rows: shape (k, welcome.features); k = welcome.history_steps - 1 is enough.

        Raises:
            StepsNotStored: the daemon did not store all of them; the next fill begins anew.
            As `request`.
        """
        self._need_history()
        self._expect_none_unanswered("fill()")
        steps = self._outbox.as_rows(rows)
        flags = np.full(len(steps), RequestFlag.STORE_ONLY, np.uint64)
        flags[:1] |= np.uint64(RequestFlag.RESET)
        for first in range(0, len(steps), self.welcome.in_flight_max):
            part = slice(first, first + self.welcome.in_flight_max)
            sent = self.send_many(steps[part], instrument_id=instrument_id, flags=flags[part])
            statuses = self.receive_many(len(sent), timeout_s)["status"]
            if (statuses != Status.STORED).any():
                told = Status(int(statuses[statuses != Status.STORED][0]))
                raise StepsNotStored(instrument_id, told)

    def give_up(self, instrument_id: int, timeout_s: float | None = None) -> None:
        """With history: forget an instrument, which makes room for another one.

        Raises:
            As `fill`.
        """
        self.fill(instrument_id, np.full((1, self.welcome.features), np.nan, np.float32), timeout_s)

    def _need_history(self) -> None:
        if not self.welcome.flags & HelloFlag.HISTORY:
            raise ShapeError("no history is kept for this client: connect(history=True)")

    def _expect_none_unanswered(self, call: str) -> None:
        if self.unanswered > self._given_up:
            raise RuntimeError(
                f"{self.unanswered - self._given_up} requests are unanswered, expected none: receive them"
                f" before {call}"
            )

    def _answer_to(
        self,
        features: npt.ArrayLike,
        deadline_ns: int,
        instrument_id: int,
        flags: int,
        timeout_s: float | None,
    ) -> Response:
        self._expect_none_unanswered("request()")
        self.send(features, deadline_ns=deadline_ns, instrument_id=instrument_id, flags=flags)
        deadline_s = self._exchange.deadline_s(timeout_s)
        try:
            while self._given_up:
                self.receive(max(0.0, deadline_s - time.monotonic()))
            return self.receive(max(0.0, deadline_s - time.monotonic()))
        except ReceiveTimeout:
            self._given_up = self.unanswered
            raise

    def heartbeat(self, timeout_s: float | None = None) -> int:
        """Ask for a sign of life and return the daemon's CLOCK_MONOTONIC. Answers that come meanwhile are
        kept.

        Raises:
            ReceiveTimeout: no sign of life within the time given.
            Rejected, SessionClosed, ProtocolBroken: the session has ended.
        """
        talk = self._talk
        before = talk.heartbeats
        self._exchange.transmit(self._offer_control, Heartbeat(time.monotonic_ns()).encode())
        deadline_s = self._exchange.deadline_s(timeout_s)
        while talk.heartbeats == before:
            self._exchange.advance(deadline_s, "no Heartbeat came back")
        return talk.daemon_clock_ns

    def model_info(self, generation: int = 0, timeout_s: float | None = None) -> ModelInfo:
        """Ask which model a generation is, as `Response.model_generation` says it. Answers that come
        meanwhile are kept.

        Args:
            generation: 0 is the one that serves now.

        Returns:
            Digest and name; `known` is False where the daemon does not know the generation.

        Raises:
            ReceiveTimeout: no answer within the time given.
            Rejected, SessionClosed, ProtocolBroken: the session has ended.
        """
        infos = self._talk.model_infos
        infos.clear()
        self._exchange.transmit(self._offer_control, ModelInfo(generation).encode())
        deadline_s = self._exchange.deadline_s(timeout_s)
        while not infos:
            self._exchange.advance(deadline_s, "no ModelInfo came back")
        return infos.pop()

    def goodbye(self, timeout_s: float | None = None) -> npt.NDArray[np.void]:
        """End the session in order: say Goodbye, collect the answers to all that was sent, see the daemon
        close.

        Returns:
            The answers, as `receive_many`; often empty. The client is closed.

        Raises:
            As `receive`; SessionClosed only where requests stay unanswered.
        """
        with contextlib.suppress(SessionClosed):  # a daemon that drains may have closed already
            self._exchange.transmit(self._offer_control, Goodbye().encode())
        deadline_s = self._exchange.deadline_s(timeout_s)
        while not self._talk.over:
            self._exchange.advance(deadline_s, "the daemon did not close the connection after Goodbye")
        error = self._talk.error()
        if not isinstance(error, SessionClosed) or error.unanswered:
            raise error
        answers = self.receive_many(self._inbox.rows)
        self.close()
        return answers

    def close(self) -> None:
        """Close at once, with a Goodbye where it can be said without waiting; unanswered requests are given
        up."""
        self._exchange.close()

    def _wait_for_rows(self, rows: int, timeout_s: float | None) -> None:
        deadline_s = self._exchange.deadline_s(timeout_s)
        while self._inbox.rows < rows:
            self._exchange.advance(deadline_s, f"{self._inbox.rows} of {rows} answers came")
