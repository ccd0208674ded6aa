"""Rings against a model of a few lines: queues of frames, and two counters each."""

from __future__ import annotations

import struct
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sigd.wire.layout import header_word
from sigd.wire.region import region_layout
from sigd.wire.ring import Region


class RingsAgainstQueues(RuleBasedStateMachine):
    """A client publishes requests, a daemon takes them and answers, either may sleep."""

    @initialize(
        slots=st.sampled_from([1, 2, 4, 16, 32]), features=st.integers(1, 70), outputs=st.integers(1, 20)
    )
    def create(self, slots: int, features: int, outputs: int) -> None:
        self.layout = region_layout(slots, features, outputs)
        self.memory = bytearray(self.layout.region_bytes)
        daemon = Region.create(memoryview(self.memory), self.layout)
        client = Region.attach(memoryview(self.memory))
        self.out = [client.requests_out(), daemon.responses_out()]
        self.into = [daemon.requests_in(), client.responses_in()]
        self.queues: list[deque[bytes]] = [deque(), deque()]
        self.published = [0, 0]
        self.taken = [0, 0]
        self.sleeping = [False, False]
        self.buffer = bytearray(70_000)

    def _frame(self, ring: int, content: bytes) -> bytes:
        frame_bytes = self.out[ring].frame_bytes
        body = content * (frame_bytes // len(content) + 1)
        return struct.pack("<Q", header_word(10 + ring, frame_bytes)) + body[: frame_bytes - 8]

    @rule(ring=st.integers(0, 1), contents=st.lists(st.binary(min_size=1, max_size=9), max_size=40))
    def publish(self, ring: int, contents: list[bytes]) -> None:
        room = self.layout.ring_slots - len(self.queues[ring])
        frames = [self._frame(ring, content) for content in contents]
        if len(frames) > room:
            with pytest.raises(ValueError, match=f"room for {room}"):
                self.out[ring].publish(b"".join(frames))
            return
        assert self.out[ring].publish(b"".join(frames)) is self.sleeping[ring]
        self.queues[ring].extend(frames)
        self.published[ring] += len(frames)

    @rule(ring=st.integers(0, 1), rows_max=st.integers(0, 40), buffer_bytes=st.integers(0, 20_000))
    def take(self, ring: int, rows_max: int, buffer_bytes: int) -> None:
        frame_bytes = self.into[ring].frame_bytes
        expected = min(rows_max, buffer_bytes // frame_bytes, len(self.queues[ring]))
        assert self.into[ring].take(memoryview(self.buffer)[:buffer_bytes], rows_max) == expected
        for row in range(expected):
            found = self.buffer[row * frame_bytes : (row + 1) * frame_bytes]
            assert found == self.queues[ring].popleft()
        self.taken[ring] += expected

    @rule(ring=st.integers(0, 1))
    def sleep(self, ring: int) -> None:
        assert self.into[ring].may_sleep() is not bool(self.queues[ring])
        self.sleeping[ring] = True

    @rule(ring=st.integers(0, 1))
    def wake(self, ring: int) -> None:
        self.into[ring].awake()
        self.sleeping[ring] = False

    @invariant()
    def counters_are_the_models(self) -> None:
        for ring, (head_at, tail_at, flag_at) in enumerate([(128, 256, 640), (384, 512, 768)]):
            assert struct.unpack_from("<Q", self.memory, head_at)[0] == self.published[ring]
            assert struct.unpack_from("<Q", self.memory, tail_at)[0] == self.taken[ring]
            assert struct.unpack_from("<I", self.memory, flag_at)[0] == self.sleeping[ring]
            assert self.into[ring].waiting() == len(self.queues[ring])
            assert self.out[ring].room() == self.layout.ring_slots - len(self.queues[ring])


TestRingsAgainstQueues = RingsAgainstQueues.TestCase
TestRingsAgainstQueues.settings = settings(max_examples=60, stateful_step_count=30)
