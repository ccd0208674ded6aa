"""RequestInbox against a model of a few lines: a list of frames, how many of their bytes came, how many are
done."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sigd.wire.inbox import RequestInbox
from sigd.wire.layout import request_frame_bytes
from sigd.wire.messages import Goodbye, Heartbeat


@dataclass(frozen=True)
class Sent:
    """One frame of the client; `header` tells the kinds apart that may be pending together."""

    data: bytes

    @property
    def header(self) -> bytes:
        return self.data[:8]

    @property
    def is_request(self) -> bool:
        return self.data[2] == 10


class InboxMachine(RuleBasedStateMachine):
    """The client writes frames, the kernel delivers bytes in any chunks, the daemon answers rows when it
    likes.

    Sizes are such that a handful of frames fills the buffer: compaction and a full buffer happen all the
    time.
    """

    @initialize(
        features=st.sampled_from([3, 4_000, 8_001, 16_373]),
        rows_max=st.sampled_from([1, 2, 5]),
    )
    def open(self, features: int, rows_max: int) -> None:
        self.features = features
        self.frame_bytes = request_frame_bytes(features)
        self.inbox = RequestInbox(features, rows_max)
        self.sent: list[Sent] = []  # not answered or acted on yet, oldest first
        self.stamps: list[int] = []  # receive times of the pending rows
        self.wire = bytearray()  # written by the client, not delivered yet
        self.delivered_bytes = 0  # of `sent`
        self.clock_ns = 0
        self.sequence = 0

    def send(self, data: bytes) -> None:
        self.sent.append(Sent(data))
        self.wire += data

    @rule(count=st.integers(1, 3), version=st.sampled_from([1, 1, 2, 3]), longer_words=st.integers(0, 2))
    def client_asks(self, count: int, version: int, longer_words: int) -> None:
        longer_bytes = min(8 * longer_words * (version > 1), 65_536 - self.frame_bytes)
        for _ in range(count):
            self.sequence += 1
            noise = np.random.default_rng(self.sequence).bytes(self.frame_bytes + longer_bytes - 16)
            header = struct.pack("<HHHH", self.frame_bytes + longer_bytes - 8, 10, 91, version)
            self.send(header + struct.pack("<Q", self.sequence) + noise)

    @precondition(lambda self: self.wire)
    @rule()
    def one_frame_arrives(self) -> None:
        """What an engine that waits for each answer does all day."""
        end = 0
        for frame in self.sent:
            end += len(frame.data)
            if end > self.delivered_bytes:
                break
        self.bytes_arrive(chunk_bytes=end - self.delivered_bytes)

    @rule(frame=st.sampled_from([Heartbeat(1).encode(), Heartbeat(2).encode(), Goodbye().encode()]))
    def client_controls(self, frame: bytes) -> None:
        self.send(frame)

    @precondition(lambda self: self.wire)
    @rule(
        chunk_bytes=st.one_of(st.integers(1, 100), st.integers(1, 200_000)),
    )
    def bytes_arrive(self, chunk_bytes: int) -> None:
        room = self.inbox.writable()
        if not room:
            assert self.inbox.rows, "no room, and no answer would make any"
            return
        part = self.wire[: min(chunk_bytes, len(room))]
        del self.wire[: len(part)]
        room[: len(part)] = part
        self.delivered_bytes += len(part)
        self.inbox.arrived(len(part))
        self.daemon_scans()

    @precondition(lambda self: self.inbox.rows)
    @rule(part=st.floats(0, 1))
    def daemon_answers(self, part: float) -> None:
        count = max(1, int(part * self.inbox.rows))
        self.inbox.answered(count)
        for _ in range(count):
            self.forget_oldest()
            self.stamps.pop(0)
        self.daemon_scans()

    def daemon_scans(self) -> None:
        self.clock_ns += 1
        while (frame := self.inbox.scan(self.clock_ns)) is not None:
            oldest = self.forget_oldest()
            assert not oldest.is_request
            assert frame.block == oldest.data[8:], "control frames come in their order, whole"
        self.stamps += [self.clock_ns] * (self.inbox.rows - len(self.stamps))

    def forget_oldest(self) -> Sent:
        oldest = self.sent.pop(0)
        self.delivered_bytes -= len(oldest.data)
        assert self.delivered_bytes >= 0, "the inbox gave what had not arrived"
        return oldest

    def whole(self) -> int:
        """How many of `sent` have arrived whole."""
        total = count = 0
        for frame in self.sent:
            total += len(frame.data)
            if total > self.delivered_bytes:
                break
            count += 1
        return count

    @invariant()
    def pending_rows_are_the_oldest_requests(self) -> None:
        arrived = self.sent[: self.whole()]
        run = 0
        while run < len(arrived) and arrived[run].is_request and arrived[run].header == arrived[0].header:
            run += 1
        assert self.inbox.rows == run, "all requests of one kind that arrived, and none behind another kind"

    @invariant()
    def rows_are_bit_equal_to_what_was_sent(self) -> None:
        rows = self.inbox.rows
        words = self.inbox.row_words(0, rows)
        features = self.inbox.row_features(0, rows)
        assert words[:, 0].tolist() == self.stamps
        for index, frame in enumerate(self.sent[:rows]):
            assert words[index, 1:].tobytes() == frame.data[8:]
            assert features[index].tobytes() == frame.data[40 : 40 + 4 * self.features]

    @invariant()
    def bytes_are_accounted_for(self) -> None:
        pending_bytes = sum(len(frame.data) for frame in self.sent[: self.inbox.rows])
        assert self.inbox.unscanned_bytes == self.delivered_bytes - pending_bytes
        assert self.inbox.head % 8 == 0

    def teardown(self) -> None:
        """Whatever is left is delivered and answered: nothing may be stuck or lost."""
        if not hasattr(self, "inbox"):
            return
        while self.sent:
            if self.inbox.rows:
                self.daemon_answers(part=1.0)
            else:
                before = len(self.wire)
                self.bytes_arrive(chunk_bytes=1 << 20)
                assert len(self.wire) < before
        assert self.inbox.rows == self.inbox.unscanned_bytes == 0


TestInboxMachine = InboxMachine.TestCase
TestInboxMachine.settings = settings(max_examples=100, stateful_step_count=50)
