"""The pacing of a run under a clock that only the test moves: intended times hold, whatever the peer does."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from sigd.bench.load.contract import LoadPlan, Measurement
from sigd.bench.load.pacing import SEQUENCES_PER_CONNECTION, Pacer
from sigd.bench.load.python import drive
from sigd.bench.load.requests import random_frames
from sigd.wire.messages import Hello

MS = 1_000_000
FRAMES = random_frames(2, seed=0, rows=8)


def plan(**options: Any) -> LoadPlan:
    options.setdefault("intended_ns", None)
    return LoadPlan("/nowhere", Hello(2, 1), FRAMES, 1, **options)


def offsets(*ms: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(ms, dtype=np.int64) * MS


class FakeTime:
    """A clock of which every reading takes one microsecond, and that jumps where it is told to."""

    def __init__(self) -> None:
        self.now_ns = 5_000 * MS

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns


class FakeDaemon:
    """A channel whose peer answers after `service_ns`, one request after another; and is away meanwhile."""

    def __init__(self, time: FakeTime, service_ns: int, room_bytes: int = 1 << 20) -> None:
        self._time = time
        self._service_ns = service_ns
        self._room_bytes = room_bytes
        self._partial = b""
        self._answers: list[tuple[int, bytes]] = []
        self._free_ns = 0
        self.stall_until_ns = 0
        self.sent_at_ns: list[int] = []

    def send(self, data: memoryview) -> int:
        taken = bytes(data[: self._room_bytes])
        self._partial += taken
        frame_bytes = FRAMES.shape[1]
        while len(self._partial) >= frame_bytes:
            request, self._partial = self._partial[:frame_bytes], self._partial[frame_bytes:]
            begin_ns = max(self._time.now_ns, self._free_ns, self.stall_until_ns)
            self._free_ns = begin_ns + self._service_ns
            sequence, client_time_ns, _, instrument = struct.unpack_from("<QQQI", request, 8)
            self.sent_at_ns.append(client_time_ns)
            answer = struct.pack(
                "<HHHHQQQQIIIHHf4x",
                *(
                    56,
                    11,
                    91,
                    1,
                    sequence,
                    client_time_ns,
                    begin_ns,
                    begin_ns + 1,
                    instrument,
                    1,
                    1,
                    0,
                    1,
                    0.5,
                ),
            )
            self._answers.append((self._free_ns, answer))
        return len(taken)

    def receive(self) -> bytes | None:
        here = b"".join(answer for ready_ns, answer in self._answers if ready_ns <= self._time.now_ns)
        self._answers = [
            (ready_ns, answer) for ready_ns, answer in self._answers if ready_ns > self._time.now_ns
        ]
        return here


def run(load: LoadPlan, daemons: list[FakeDaemon], time: FakeTime) -> Measurement:
    return drive(load, daemons, b"", lambda: None, time)


def test_every_request_leaves_at_its_time_when_nothing_is_in_the_way() -> None:
    time = FakeTime()
    daemon = FakeDaemon(time, service_ns=20_000)
    measurement = run(plan(intended_ns=offsets(0, 10, 10, 25), in_flight=4), [daemon], time)
    assert measurement.received == 4
    assert (measurement.samples["sent_ns"] - measurement.samples["intended_ns"]).max() < 10_000
    assert measurement.late_sends == 0
    latency = measurement.samples["received_ns"] - measurement.samples["intended_ns"]
    assert latency.max() < 60_000


def test_a_stall_delays_what_was_due_but_moves_no_intended_time() -> None:
    time = FakeTime()
    daemon = FakeDaemon(time, service_ns=20_000)
    daemon.stall_until_ns = time.now_ns + 97 * MS
    schedule_ns = offsets(*range(0, 200, 10))
    measurement = run(plan(intended_ns=schedule_ns, in_flight=1), [daemon], time)
    samples = measurement.samples
    np.testing.assert_array_equal(np.diff(samples["intended_ns"]), 10 * MS)
    corrected = samples["received_ns"] - samples["intended_ns"]
    uncorrected = samples["received_ns"] - samples["sent_ns"]
    # The first met the stall itself; the nine after it were due during the stall and could only leave
    # afterwards.
    assert (corrected[:10] > 5 * MS).all()
    assert (np.diff(corrected[:10]) < 0).all()
    assert uncorrected[0] > 90 * MS
    assert (uncorrected[1:10] < MS).all()
    assert measurement.late_sends == 9
    assert (corrected[12:] < MS).all(), "the schedule is caught up with"


def test_a_full_socket_never_blocks_and_nothing_is_sent_twice() -> None:
    time = FakeTime()
    daemon = FakeDaemon(time, service_ns=1000, room_bytes=17)
    measurement = run(plan(intended_ns=offsets(0, 0, 0, 0, 1), in_flight=8), [daemon], time)
    assert measurement.violation is None
    assert measurement.received == 5
    assert len(daemon.sent_at_ns) == 5


def test_requests_go_round_the_connections() -> None:
    time = FakeTime()
    daemons = [FakeDaemon(time, service_ns=1000) for _ in range(3)]
    measurement = run(plan(intended_ns=offsets(*range(7)), connections=3, in_flight=2), list(daemons), time)
    assert [len(daemon.sent_at_ns) for daemon in daemons] == [3, 2, 2]
    assert measurement.samples["connection"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_the_run_ends_when_an_answer_is_overdue() -> None:
    time = FakeTime()
    daemon = FakeDaemon(time, service_ns=1000)
    daemon.stall_until_ns = time.now_ns + 10_000 * MS
    measurement = run(plan(intended_ns=offsets(0, 1, 2), in_flight=8, stall_ns=50 * MS), [daemon], time)
    assert measurement.lost == 3
    assert measurement.received == 0


def test_peer_that_falls_behind_is_asked_no_more() -> None:
    time = FakeTime()
    daemon = FakeDaemon(time, service_ns=10 * MS)
    load = plan(intended_ns=offsets(*range(100)), in_flight=1, behind_ns=50 * MS)
    measurement = run(load, [daemon], time)
    # The sixth is sent 45 ms late, the seventh would be 54 ms late.
    assert (measurement.requests, measurement.sent, measurement.received, measurement.lost) == (100, 6, 6, 0)


def test_warmup_is_sent_and_not_measured() -> None:
    time = FakeTime()
    daemon = FakeDaemon(time, service_ns=1000)
    load = plan(intended_ns=offsets(-3, -2, -1, 0, 1), warmup_ns=3 * MS, in_flight=8)
    measurement = run(load, [daemon], time)
    assert (measurement.requests, measurement.sent, measurement.received) == (2, 2, 2)
    assert len(daemon.sent_at_ns) == 5


def test_a_closed_loop_keeps_its_requests_in_flight() -> None:
    load = plan(requests=5, in_flight=2, connections=2)
    pacer = Pacer(load, begin_ns=0)
    first = pacer.take_due(0, 0)
    assert len(first) == 2
    assert len(pacer.take_due(1, 0)) == 2
    assert pacer.take_due(0, 1) == []
    pacer.answered(0)
    assert pacer.unanswered(0) == 1
    refill = pacer.take_due(0, 2)
    assert [asked.sequence for asked in refill] == [SEQUENCES_PER_CONNECTION + 2]
    assert pacer.sent == 5
    pacer.answered(0)
    assert pacer.take_due(0, 3) == [], "as many as were asked for are sent"
    assert not pacer.over(3)
    for connection in (0, 1, 1):
        pacer.answered(connection)
    assert pacer.over(4)


def test_a_closed_loop_ends_with_its_duration() -> None:
    pacer = Pacer(plan(duration_ns=100, in_flight=1), begin_ns=50)
    assert pacer.take_due(0, 10)[0].measured is False
    pacer.answered(0)
    assert pacer.take_due(0, 50)[0].measured is True
    pacer.answered(0)
    assert not pacer.over(149)
    assert pacer.take_due(0, 150) == []
    assert pacer.over(150)
