"""What is recorded is what was asked and what was answered, byte for byte, whichever way it went."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sigd.wire import fields
from sigd.wire.layout import frame_dtype, response_frame_bytes
from sigd.wire.ring import why_not_here
from sigd.wire.status import GoodbyeCode, Status

if TYPE_CHECKING:
    from tests.daemon.conftest import FakeClient, Rig
    from tests.daemon.recording.conftest import MakeRecorded, Recorded

    from sigd.wire.recording.reader import Exchanges

pytestmark = pytest.mark.usefixtures("each_fast_path")

FEATURES, OUTPUTS = 4, 2


def frames_of(exchanges: list[Exchanges], *, session: int = 1) -> tuple[bytes, bytes]:
    """All requests and all answers of one session."""
    own = [exchange for exchange in exchanges if exchange.session == session]
    return (
        b"".join(exchange.requests.tobytes() for exchange in own),
        b"".join(exchange.responses.tobytes() for exchange in own),
    )


class Recording:
    """A rig that records."""

    def __init__(self, make_rig: type[Rig], recorded: Recorded, **options: Any) -> None:
        self.recorded = recorded
        self.rig = make_rig(taps=recorded.taps, **options)
        self.sent: dict[FakeClient, bytearray] = {}

    def connect(self, **asked: Any) -> FakeClient:
        client = self.rig.connect(**asked)
        self.sent[client] = bytearray()
        del client.raw[:]
        return client

    def say(self, client: FakeClient, *frames: bytes) -> None:
        self.sent[client] += b"".join(frames)
        client.say(*frames)

    def run(self) -> None:
        self.rig.clock.now_ns += 1000
        self.rig.run()

    def check(self) -> list[Exchanges]:
        """Everything that was sent and answered is recorded, and nothing else."""
        self.recorded.store()
        exchanges = self.recorded.exchanges()
        for session, (client, sent) in enumerate(self.sent.items(), 1):
            requests, responses = frames_of(exchanges, session=session)
            assert requests == bytes(sent)
            assert responses == bytes(client.raw)
        firsts = [exchange.first for exchange in exchanges]
        assert firsts == np.cumsum([0, *(len(exchange.requests) for exchange in exchanges)])[:-1].tolist()
        return exchanges


@pytest.fixture
def recording(make_rig: type[Rig], make_recorded: MakeRecorded) -> Recording:
    return Recording(make_rig, make_recorded())


def test_a_request_that_runs_alone(recording: Recording) -> None:
    client = recording.connect(client_name="engine")
    for sequence in range(5):
        recording.say(client, recording.rig.request(sequence, 1.5, sequence, instrument_id=9))
        recording.run()
        assert recording.rig.batcher.fast_path_owner is client.session
    first, *others = recording.check()
    assert first.batch > 0, "the first one went the full way"
    assert [exchange.batch for exchange in others] == [0] * 4
    facts = first.facts
    assert (facts.client, facts.transport, facts.model, facts.generation) == ("engine", "stream", "fake", 1)
    assert (facts.features, facts.outputs, facts.backend, facts.batch_rows_max) == (4, 2, "fake", 8)
    assert facts.sha256 == bytes(range(32)).hex()
    assert facts.path.endswith("/fake.onnx")


@pytest.mark.parametrize("synchronous", [True, False])
def test_requests_of_several_clients_that_run_together(
    make_rig: type[Rig], make_recorded: MakeRecorded, synchronous: bool
) -> None:
    recording = Recording(make_rig, make_recorded(), synchronous=synchronous)
    one, other = recording.connect(), recording.connect()
    for turn in range(3):
        recording.rig.batcher.close_fast_path()
        recording.say(one, recording.rig.requests(range(turn * 3, turn * 3 + 3)))
        recording.say(other, recording.rig.requests(range(turn * 2, turn * 2 + 2)))
        recording.run()
    exchanges = recording.check()
    assert [(exchange.session, len(exchange.requests)) for exchange in exchanges] == [(1, 3), (2, 2)] * 3
    batches = [exchange.batch for exchange in exchanges]
    assert batches[0] == batches[1] != batches[2] == batches[3] != batches[4]
    assert {int(exchange.responses["batch_rows"][0]) for exchange in exchanges} == {5}


def test_every_status(recording: Recording) -> None:
    client = recording.connect(flags=1)
    rig = recording.rig
    recording.say(
        client,
        rig.request(0, 1, deadline_ns=1),
        rig.request(1, float("nan"), instrument_id=1),
        rig.request(2, 1, instrument_id=2),
        rig.request(3, 2, instrument_id=2),
        rig.request(4, 1, 2, -7.0, instrument_id=3),
    )
    recording.run()
    client.session.drain(GoodbyeCode.DRAINING)
    goodbye = bytes(client.raw[-16:])
    del client.raw[-16:]
    recording.say(client, rig.request(5, 1))
    recording.run()
    first, second = recording.check()
    assert goodbye[2] == fields.GOODBYE.template_id
    assert first.responses["status"].tolist() == [
        Status.EXPIRED,
        Status.BAD_INPUT,
        Status.CONFLATED,
        Status.OK,
        Status.MODEL_ERROR,
    ]
    assert second.responses["status"].tolist() == [Status.DRAINING]


def test_batch_that_failed_is_no_part_of_the_one_before(recording: Recording) -> None:
    client = recording.connect()
    rig = recording.rig
    for failure in (None, RuntimeError("by chance"), None):
        rig.batcher.close_fast_path()
        recording.say(client, rig.request(1, 1), rig.request(2, 1))
        rig.backend.broken = failure
        recording.run()
    exchanges = recording.check()
    assert [exchange.responses["status"].tolist() for exchange in exchanges] == [[0, 0], [4, 4], [0, 0]]
    assert len({exchange.batch for exchange in exchanges}) == 3


def test_a_request_of_a_newer_version_is_recorded_as_it_came(recording: Recording) -> None:
    client = recording.connect()
    rig = recording.rig
    for sequence in range(3):
        recording.say(client, rig.request(sequence, 1, version=2, longer_bytes=16))
        recording.run()
    recording.recorded.store()
    exchanges = recording.recorded.exchanges()
    dtype = frame_dtype(fields.SIGNAL_REQUEST, FEATURES, OUTPUTS)
    assert [exchange.requests["version"].tolist() for exchange in exchanges] == [[2]] * 3
    assert exchanges[0].requests.strides == (dtype.itemsize + 16,)
    assert [exchange.requests["sequence"].tolist() for exchange in exchanges] == [[0], [1], [2]]
    assert {int(exchange.requests["block_length"][0]) for exchange in exchanges} == {dtype.itemsize + 8}


def test_more_than_goes_into_one_record_goes_into_several(
    make_rig: type[Rig], make_recorded: MakeRecorded
) -> None:
    recording = Recording(make_rig, make_recorded(capacity_bytes=1 << 13), batch_rows_max=64)
    client = recording.connect()
    recording.say(client, recording.rig.requests(range(40)))
    recording.run()
    exchanges = recording.check()
    assert len(exchanges) > 1
    assert len({exchange.batch for exchange in exchanges}) == 1


def test_what_finds_no_room_is_counted_and_its_numbers_are_left_out(
    make_rig: type[Rig], make_recorded: MakeRecorded
) -> None:
    recorded = make_recorded()
    recording = Recording(make_rig, recorded)
    client = recording.connect()
    for sequence in range(1000):
        recording.say(client, recording.rig.request(sequence, 1))
        recording.run()
    dropped = recorded.ring.dropped
    assert 0 < dropped < 1000
    recorded.store()
    recording.say(client, recording.rig.request(1000, 1))
    recording.run()
    recorded.store()
    exchanges = recorded.exchanges()
    numbers = [exchange.first for exchange in exchanges]
    assert numbers == [*range(1000 - dropped), 1000]
    assert [int(exchange.requests["sequence"][0]) for exchange in exchanges] == numbers


def test_each_segment_says_who_the_clients_are(make_rig: type[Rig], make_recorded: MakeRecorded) -> None:
    recorded = make_recorded()
    recording = Recording(make_rig, recorded)
    clients = [recording.connect(client_name=name) for name in ("one", "two")]
    for sequence in range(500):
        for client in clients:
            recording.say(client, recording.rig.request(sequence, 1))
            recording.run()
        recorded.store()
    recording.check()
    paths = sorted(recorded.directory.iterdir())
    assert len(paths) > 3
    for path in paths[:-1]:
        path.unlink()
    assert {exchange.facts.client for exchange in recorded.exchanges()} == {"one", "two"}


@pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())
def test_requests_through_a_ring(make_rig: type[Rig], make_recorded: MakeRecorded) -> None:
    from tests.daemon.transport.test_rings import RingRig

    recorded = make_recorded()
    rigged = RingRig(make_rig(taps=recorded.taps))
    client = rigged.connect(client_name="ring", ring_slots=8)
    sent, answered = bytearray(), bytearray()
    for count in (1, 1, 1, 5, 2, 1, 1, 8, 1, 1, 1):
        frames = rigged.rig.requests(range(count), instrument_id=7, client_time_ns=99)
        sent += frames
        client.send(frames)
        rigged.rig.clock.now_ns += 1000
        rigged.run()
        answers = memoryview(bytearray(count * response_frame_bytes(OUTPUTS)))
        assert client.responses.take(answers, count) == count
        answered += answers
    # What the client does to its memory afterwards changes nothing that was recorded.
    client.view[4096:] = b"\xee" * (len(client.view) - 4096)
    recorded.store()
    exchanges = recorded.exchanges()
    assert frames_of(exchanges) == (bytes(sent), bytes(answered))
    assert {exchange.facts.transport for exchange in exchanges} == {"shared_memory"}
    assert [exchange.batch for exchange in exchanges].count(0) >= 4, "some went the shortest way"
    for descriptor in client.stream.descriptors:
        os.close(descriptor)
    rigged.host.close()


@given(
    actions=st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.integers(0, 2), st.integers(1, 8)),
            st.tuples(st.just("store"), st.just(0), st.just(0)),
        ),
        max_size=60,
    ),
    capacity_bytes=st.sampled_from([1 << 12, 1 << 13, 3 << 12]),
    stretch_bytes=st.sampled_from([1 << 12, 5 << 11, 1 << 14]),
)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_comes_all_is_recorded_or_counted(
    make_rig: type[Rig],
    make_recorded: MakeRecorded,
    actions: list[tuple[str, int, int]],
    capacity_bytes: int,
    stretch_bytes: int,
) -> None:
    recorded = make_recorded(capacity_bytes=capacity_bytes, stretch_bytes=stretch_bytes)
    recording = Recording(make_rig, recorded)
    clients = [recording.connect() for _ in range(3)]
    sequence = 0
    for what, who, rows in actions:
        if what == "store":
            recorded.store()
            continue
        recording.say(clients[who], recording.rig.requests(range(sequence, sequence + rows)))
        sequence += rows
        recording.run()
    recorded.store()
    exchanges = recorded.exchanges() if sequence else []
    seen = [int(number) for exchange in exchanges for number in exchange.requests["sequence"]]
    numbers = [exchange.first + row for exchange in exchanges for row in range(len(exchange.requests))]
    assert seen == numbers, "the numbers of what was dropped are left out"
    assert sorted(set(seen)) == seen
    assert len(seen) + recorded.ring.dropped == recorded.ring.requests == sequence
    for exchange in exchanges:
        assert exchange.responses["sequence"].tolist() == exchange.requests["sequence"].tolist()
        assert exchange.responses["outputs"][:, 0].tolist() == exchange.requests["features"][:, 0].tolist()
