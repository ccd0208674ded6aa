"""Sessions whose requests come through rings: real memory and real doorbells, a loop that the test turns by
hand."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import select
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from tests.descriptors import open_descriptors

from sigd.daemon.serving.counters import LatencyCounts
from sigd.daemon.serving.fast_path_ring import ANSWERED, EMPTY, HANDED_OVER, Found, make_poll_round
from sigd.daemon.serving.session import Session
from sigd.daemon.transport import rings as shared_memory
from sigd.daemon.transport.rings import AWAKE_MAX, BEAT_S, BEATEN_AT_ONCE, RingHost, SessionRings
from sigd.wire.layout import response_frame_bytes
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome
from sigd.wire.region import OFFSETS
from sigd.wire.ring import Region, why_not_here
from sigd.wire.status import GoodbyeCode, RejectCode, Status, Transport

if TYPE_CHECKING:
    from tests.daemon.conftest import FakeClient, Rig

pytestmark = pytest.mark.usefixtures("each_fast_path")

pytestmark = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())

OUTPUTS = 2


class Loop:
    """The part of an event loop that the rings use; doorbells are looked at when `turn()` is called."""

    def __init__(self) -> None:
        self.readers: dict[int, Callable[[], object]] = {}
        self.timers: list[Callable[[], object]] = []
        self.delay_s = 0.0

    def add_reader(self, descriptor: int, callback: Callable[[], object]) -> None:
        self.readers[descriptor] = callback

    def remove_reader(self, descriptor: int) -> bool:
        return self.readers.pop(descriptor, None) is not None

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Loop:
        self.delay_s = delay_s
        self.timers.append(callback)
        return self

    def cancel(self) -> None:
        """A timer is cancelled: there is only one."""
        self.timers.clear()

    def turn(self) -> int:
        """Call who waits for a descriptor that is readable; how many were."""
        ready = select.select(list(self.readers), [], [], 0)[0]
        for descriptor in ready:
            self.readers[descriptor]()
        return len(ready)

    def beat(self) -> None:
        """The next beat is due."""
        (callback,) = self.timers
        self.timers.clear()
        callback()


class RingRig:
    """A rig whose clients get rings."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.loop = Loop()
        self.wakes = 0
        self.host = RingHost(
            self.loop,  # type: ignore[arg-type]
            rig.clock,
            self._wake,
            rig.client_counters,
        )
        self.clients: list[RingClient] = []

    def _wake(self) -> None:
        self.wakes += 1

    def connect(self, **asked: Any) -> RingClient:
        """A client after Hello and Welcome."""
        client = RingClient(self, **asked)
        self.clients.append(client)
        return client

    def poll(self) -> bool:
        """A tick."""
        taken = self.host.poll()
        return self.rig.batcher.poll() or taken

    def run(self) -> None:
        """Ticks until nothing is left to do."""
        for _ in range(10_000):
            self.loop.turn()
            for client in self.clients:
                client.stream.take_turn()
            self.rig.backend.finished = True
            if not self.poll() and not any(client.stream.turns for client in self.clients):
                return
        raise AssertionError("the loop does not come to rest")


class RingClient:
    """The client's ends of the rings, and of the stream."""

    def __init__(self, rigged: RingRig, **asked: Any) -> None:
        self.stream: FakeClient = rigged.rig.client(rigged.host.open)
        self.stream.say(Hello(transport=Transport.SHARED_MEMORY, **asked).encode())
        (welcome,) = self.stream.received()
        assert isinstance(welcome, Welcome), welcome
        self.welcome = welcome
        memory, self.request_bell, self.response_bell = self.stream.descriptors
        self.bytes = os.fstat(memory).st_size
        self.map = mmap.mmap(memory, self.bytes)
        self.memory = memory
        self.view = memoryview(self.map)
        region = Region.attach(self.view)
        self.requests = region.requests_out()
        self.responses = region.responses_in()
        self.region = region
        self.session = self.stream.session

    def send(self, frames: bytes) -> None:
        """Publish, and ring where the daemon sleeps."""
        if self.requests.publish(frames):
            os.eventfd_write(self.request_bell, 1)

    def answers(self, rows: int = 1024) -> list[tuple[int, int]]:
        """Sequence and status of those that came."""
        frame_bytes = response_frame_bytes(OUTPUTS)
        buffer = bytearray(rows * frame_bytes)
        count = self.responses.take(memoryview(buffer), rows)
        return [
            (
                int.from_bytes(buffer[at + 8 : at + 16], "little"),
                int.from_bytes(buffer[at + 52 : at + 54], "little"),
            )
            for at in range(0, count * frame_bytes, frame_bytes)
        ]

    def close(self) -> None:
        """Let go of the descriptors."""
        for descriptor in self.stream.descriptors:
            os.close(descriptor)

    def write_word(self, field: str, value: int) -> None:
        """Write where the rules would not let it."""
        self.view[OFFSETS[field] : OFFSETS[field] + 8] = value.to_bytes(8, "little")

    def rejected(self) -> Reject:
        """What ended the session."""
        *_, reject = self.stream.received()
        assert isinstance(reject, Reject)
        assert self.session.closed
        assert self.stream.finished
        return reject


@pytest.fixture
def rigged(rig: Rig) -> Iterator[RingRig]:
    rigged = RingRig(rig)
    yield rigged
    for client in rigged.clients:
        for descriptor in client.stream.descriptors:
            os.close(descriptor)
    rigged.host.close()


def test_the_welcome_says_what_the_region_is(rigged: RingRig) -> None:
    client = rigged.connect(ring_slots=16)
    welcome, layout = client.welcome, client.region.layout
    assert (welcome.transport, welcome.ring_slots, welcome.in_flight_max) == (1, 16, 16)
    assert (welcome.request_stride, welcome.response_stride) == (64, 64)
    assert (layout.ring_slots, layout.features, layout.outputs) == (16, 4, 2)
    assert client.bytes == layout.region_bytes
    assert client.region.daemon_heartbeat_ns == rigged.rig.clock.now_ns


@pytest.mark.parametrize(("asked", "granted"), [(0, 256), (1, 1), (64, 64), (4096, 256), (65_536, 256)])
def test_slots_are_granted_within_the_bounds(rigged: RingRig, asked: int, granted: int) -> None:
    assert rigged.connect(ring_slots=asked).welcome.ring_slots == granted


def test_slots_are_a_power_of_two_within_the_bounds(make_rig: type[Rig]) -> None:
    rigged = RingRig(make_rig(in_flight_max=100))
    assert rigged.connect().welcome.ring_slots == 64
    client = rigged.rig.client(rigged.host.open)
    client.say(Hello(transport=Transport.SHARED_MEMORY, ring_slots=48).encode())
    (reject,) = client.received()
    assert isinstance(reject, Reject)
    assert reject.code == RejectCode.PROTOCOL_VIOLATION
    assert "48 is no power of two" in reject.reason


@pytest.mark.parametrize("what", ["shrink", "grow", "unseal"])
def test_the_region_is_sealed(rigged: RingRig, what: str) -> None:
    client = rigged.connect()
    attempt: dict[str, Callable[[], object]] = {
        "shrink": lambda: os.ftruncate(client.memory, client.bytes - 4096),
        "grow": lambda: os.ftruncate(client.memory, client.bytes + 4096),
        "unseal": lambda: fcntl.fcntl(client.memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    }
    with pytest.raises(PermissionError):
        attempt[what]()


def test_requests_are_answered_in_order(rigged: RingRig) -> None:
    client = rigged.connect(ring_slots=64)
    sent = 0
    for count in (1, 1, 1, 5, 64, 1, 30, 34, 1):
        client.send(rigged.rig.requests(range(sent, sent + count)))
        rigged.run()
        assert client.answers() == [(sequence, Status.OK) for sequence in range(sent, sent + count)]
        sent += count
    assert rigged.rig.counters.by_status[Status.OK] == sent
    assert rigged.rig.batcher.pending_rows == 0


def test_single_request_is_answered_in_one_poll(make_rig: type[Rig]) -> None:
    rigged = RingRig(make_rig())
    client = rigged.connect()
    for sequence in range(3):
        client.send(rigged.rig.requests([sequence]))
        rigged.poll()
        assert client.answers() == [(sequence, Status.OK)]
    assert rigged.rig.batcher.fast_path_owner is client.session


@pytest.mark.parametrize("looks", [1, 3, None])
def test_single_request_waits_for_a_device_as_long_as_it_is_quick(
    make_rig: type[Rig], looks: int | None
) -> None:
    rigged = RingRig(make_rig(synchronous=False))
    client = rigged.connect()
    client.send(rigged.rig.requests([0]))
    rigged.run()
    assert client.answers() == [(0, Status.OK)]
    rigged.rig.backend.looks = looks
    for sequence in range(1, 4):
        client.send(rigged.rig.requests([sequence]))
        rigged.poll()
        assert client.answers() == ([] if looks is None else [(sequence, Status.OK)])
        rigged.run()
        assert client.answers() == ([(sequence, Status.OK)] if looks is None else [])
    assert len(rigged.rig.backend.batches) == 4, "nothing is run twice"


@pytest.mark.parametrize("written", ["another", "nonsense", "two"])
def test_change_of_model_while_a_device_runs_harms_no_client(
    make_rig: type[Rig], monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """A client that writes to its slot, or another one, while the loop waits for the device."""
    rigged = RingRig(make_rig(synchronous=False))
    ready, looks = rigged.rig.backend.ready, -1000

    def look() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            if written == "two":
                client.send(rigged.rig.requests([2]))
            else:
                frame = rigged.rig.requests([9])
                client.requests.slot(1)[: len(frame)] = frame if written == "another" else bytes(len(frame))
        return ready()

    monkeypatch.setattr(rigged.rig.backend, "ready", look)
    client = rigged.connect()
    client.send(rigged.rig.requests([0]))
    rigged.run()
    client.answers()
    looks = 0
    client.send(rigged.rig.requests([1]))
    rigged.poll()
    rigged.run()
    assert looks > 100
    assert [sequence for sequence, _ in client.answers()] == {"another": [9], "nonsense": [], "two": [1, 2]}[
        written
    ]
    assert client.session.closed is (written == "nonsense")
    assert rigged.rig.batcher.idle
    assert rigged.rig.batcher.pending_rows == 0


def test_fast_path_is_counted_to_the_bin(make_rig: type[Rig]) -> None:
    rigged = RingRig(make_rig())
    rig, client = rigged.rig, rigged.connect()
    expected = LatencyCounts()
    for infer_ns in (0, 900_000, 6_000, 127, 128, 70_000):
        rig.backend.run_ns = infer_ns
        client.send(rig.requests([1]))
        rigged.poll()
        expected.add(infer_ns)
    counters = rig.counters
    assert counters.total.sparse() == counters.model.sparse() == expected.sparse()
    assert counters.queue.sparse() == [(128, 6)]
    assert counters.by_status[Status.OK] == counters.batches_by_rows[1] == 6


def test_fast_path_goes_round_the_ring(make_rig: type[Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    rigged = RingRig(make_rig())
    client = rigged.connect(ring_slots=4)

    def ask(sequence: int) -> None:
        client.send(rigged.rig.requests([sequence]))
        rigged.poll()
        assert client.answers() == [(sequence, Status.OK)]

    ask(0)
    with monkeypatch.context() as patched:
        patched.delattr(Session, "took")
        for sequence in range(1, 13):
            ask(sequence)


def test_tail_outside_the_rules_ends_the_session_on_the_fast_path(make_rig: type[Rig]) -> None:
    rigged = RingRig(make_rig())
    client = rigged.connect(ring_slots=4)
    for sequence in range(4):
        client.send(rigged.rig.requests([sequence]))
        rigged.poll()
    assert client.answers() == [(sequence, Status.OK) for sequence in range(4)]
    client.write_word("response_tail", 5)
    client.send(rigged.rig.requests([4]))
    rigged.run()
    assert client.rejected().code == RejectCode.PROTOCOL_VIOLATION


def test_rings_and_streams_share_one_batch(make_rig: type[Rig]) -> None:
    rigged = RingRig(make_rig())
    ring, other, stream = rigged.connect(), rigged.connect(), rigged.rig.connect()
    for client in (ring, other):
        client.send(rigged.rig.requests([1, 2]))
    stream.say(rigged.rig.requests([3]))
    rigged.run()
    assert ring.answers() == other.answers() == [(1, Status.OK), (2, Status.OK)]
    assert stream.statuses() == [(3, Status.OK)]
    assert rigged.rig.counters.batches_by_rows[5] == 1


def test_no_more_is_taken_than_there_is_room_for_answers(make_rig: type[Rig]) -> None:
    rigged = RingRig(make_rig())
    client = rigged.connect(ring_slots=4)
    client.send(rigged.rig.requests(range(4)))
    rigged.run()
    client.send(rigged.rig.requests(range(4, 8)))
    rigged.run()
    assert rigged.rig.backend.rows_run == 4, "the answers have not been taken"
    assert rigged.host.may_sleep(), "nothing spins for a client that does not take its answers"
    assert client.answers(2) == [(0, Status.OK), (1, Status.OK)]
    rigged.loop.beat()
    rigged.run()
    assert client.answers() == [(sequence, Status.OK) for sequence in (2, 3, 4, 5)]
    rigged.loop.beat()
    rigged.run()
    assert client.answers() == [(6, Status.OK), (7, Status.OK)]


def test_asleep_it_is_woken_by_the_doorbell(rigged: RingRig) -> None:
    client = rigged.connect()
    assert rigged.host.may_sleep()
    client.send(rigged.rig.requests([1]))
    assert not rigged.poll(), "asleep, no one looks"
    assert client.answers() == []
    wakes = rigged.wakes
    assert rigged.loop.turn() == 1
    assert rigged.wakes == wakes + 1
    rigged.run()
    assert client.answers() == [(1, Status.OK)]
    client.send(rigged.rig.requests([2]))
    assert rigged.loop.turn() == 0, "awake, no bell is needed"
    rigged.run()
    assert client.answers() == [(2, Status.OK)]


def test_what_is_published_before_it_sleeps_keeps_it_awake(rigged: RingRig) -> None:
    client = rigged.connect()
    client.send(rigged.rig.requests([1]))
    assert not rigged.host.may_sleep()
    rigged.run()
    assert client.answers() == [(1, Status.OK)]


def test_a_client_that_sleeps_is_woken(rigged: RingRig) -> None:
    client = rigged.connect()
    client.send(rigged.rig.requests([1]))
    assert client.responses.may_sleep()
    rigged.run()
    assert os.eventfd_read(client.response_bell) == 1
    client.responses.awake()
    client.send(rigged.rig.requests([2]))
    rigged.run()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(client.response_bell)


@pytest.mark.parametrize("bell", ["full", "emptied"])
def test_a_bell_made_to_block_does_not(rigged: RingRig, bell: str) -> None:
    client = rigged.connect()
    for descriptor in (client.request_bell, client.response_bell):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
    if bell == "full":
        os.eventfd_write(client.response_bell, 2**64 - 2)
        assert client.responses.may_sleep()
        client.send(rigged.rig.requests([1]))
    else:
        assert rigged.host.may_sleep()
        client.send(rigged.rig.requests([1]))
        (rung,) = rigged.loop.readers.values()
        os.eventfd_read(client.request_bell)
        rung()
    rigged.run()
    assert client.answers() == [(1, Status.OK)]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("request_head", 2**64 - 1, "head at 18446744073709551615, expected 3..19"),
        ("request_head", 1, "head at 1, expected 3..19"),
        ("request_head", 20, "head at 20, expected 3..19"),
        ("response_tail", 1000, "tail at 1000, expected within 0.."),
        ("response_tail", 2**63, "tail at 9223372036854775808, expected within 0.."),
    ],
)
def test_a_counter_outside_the_rules_ends_the_session(
    rigged: RingRig, field: str, value: int, said: str
) -> None:
    client, neighbour = rigged.connect(ring_slots=16), rigged.connect()
    client.send(rigged.rig.requests([1, 2, 3]))
    rigged.run()
    client.write_word(field, value)
    if field == "response_tail":
        # It is looked at when there would be no more room for answers otherwise.
        client.requests.tail_seen = 3
        for sequence in range(4, 18):
            client.send(rigged.rig.requests([sequence]))
            rigged.run()
    rigged.poll()
    reject = client.rejected()
    assert reject.code == RejectCode.PROTOCOL_VIOLATION
    assert reject.reason.startswith(said)
    neighbour.send(rigged.rig.requests([5]))
    rigged.run()
    assert neighbour.answers() == [(5, Status.OK)]


def test_a_tail_taken_back_while_the_batch_runs_ends_the_session(make_rig: type[Rig]) -> None:
    rigged = RingRig(make_rig(synchronous=False))
    client = rigged.connect(ring_slots=2)
    for sequences in ((1, 2), (3,)):
        client.send(rigged.rig.requests(sequences))
        rigged.run()
        client.answers()
    client.send(rigged.rig.requests([4, 5]))
    rigged.poll()
    rigged.poll()
    client.write_word("response_tail", 0)
    rigged.rig.backend.finished = True
    rigged.run()
    assert rigged.rig.batcher.pending_rows == 0, "there was room for the answers when the requests were taken"
    client.send(rigged.rig.requests([6]))
    rigged.run()
    assert client.rejected().code == RejectCode.PROTOCOL_VIOLATION
    assert rigged.rig.batcher.pending_rows == 0


@pytest.mark.parametrize("written", [b"\xff" * 56, bytes(56), Goodbye().encode() + bytes(40)])
def test_what_is_no_request_ends_the_session(rigged: RingRig, written: bytes) -> None:
    client = rigged.connect()
    client.send(written)
    rigged.run()
    assert client.rejected().code in (RejectCode.UNSUPPORTED_VERSION, RejectCode.PROTOCOL_VIOLATION)


def test_the_daemons_own_words_may_be_overwritten(rigged: RingRig) -> None:
    client = rigged.connect(ring_slots=8)
    for sequence in range(20):
        client.send(rigged.rig.requests([sequence]))
        for field in ("request_tail", "response_head", "daemon_heartbeat_ns"):
            client.write_word(field, 2**64 - 1 - sequence)
        rigged.run()
        assert client.answers() == [(sequence, Status.OK)]


def test_requests_belong_into_the_ring(rigged: RingRig) -> None:
    client = rigged.connect()
    client.stream.say(rigged.rig.requests([1]))
    reject = client.rejected()
    assert reject.code == RejectCode.UNEXPECTED_TEMPLATE
    assert "template 10" in reject.reason


def test_heartbeats_go_over_the_stream(rigged: RingRig) -> None:
    client = rigged.connect()
    client.send(rigged.rig.requests([1]))
    client.stream.say(Heartbeat(5).encode() * 100)
    rigged.run()
    assert client.stream.received() == [Heartbeat(rigged.rig.clock.now_ns)] * 100
    assert client.answers() == [(1, Status.OK)]


@pytest.mark.parametrize("count", [0, 1, 2, 8, 16])
def test_what_came_before_a_goodbye_is_answered(rigged: RingRig, count: int) -> None:
    client = rigged.connect(ring_slots=16)
    client.send(rigged.rig.requests([100]))
    rigged.run()
    client.answers()
    client.send(rigged.rig.requests(range(count)))
    client.stream.say(Goodbye().encode())
    rigged.run()
    assert client.answers() == [(sequence, Status.OK) for sequence in range(count)]
    assert client.stream.received() == [Goodbye(GoodbyeCode.DONE)]
    assert client.stream.finished
    assert rigged.loop.readers == {}


def test_a_drain_answers_what_was_taken(rigged: RingRig) -> None:
    client = rigged.connect()
    client.send(rigged.rig.requests([1]))
    rigged.run()
    client.session.drain(GoodbyeCode.DRAINING)
    client.send(rigged.rig.requests([2]))
    rigged.run()
    assert client.answers() == [(1, Status.OK), (2, Status.DRAINING)]
    client.session.wind_up(rigged.rig.clock())
    client.send(rigged.rig.requests([3]))
    rigged.run()
    assert client.answers() == []
    assert client.stream.received() == [Goodbye(GoodbyeCode.DRAINING)]
    assert client.stream.finished


@pytest.mark.parametrize("end", ["end of stream", "lost"])
def test_the_streams_end_is_the_end(rigged: RingRig, end: str) -> None:
    client = rigged.connect()
    client.send(rigged.rig.requests([1]))
    if end == "lost":
        client.stream.lose()
    else:
        client.stream.end()
        assert client.stream.finished
    assert client.session.closed
    rigged.run()
    assert client.answers() == []
    assert rigged.loop.readers == {}
    assert rigged.rig.batcher.pending_rows == 0


@pytest.mark.parametrize("end", ["goodbye", "lost", "rejected", "in a batch"])
def test_everything_is_given_back(make_rig: type[Rig], end: str) -> None:
    rigged = RingRig(make_rig(synchronous=end != "in a batch"))
    gc.collect()
    before = len(open_descriptors()), regions_mapped()
    for _ in range(50):
        client = rigged.connect()
        client.send(rigged.rig.requests([1]))
        if end == "in a batch":
            rigged.poll()
            client.stream.lose()
        elif end == "rejected":
            client.write_word("request_head", 2**40)
        elif end == "lost":
            client.stream.lose()
        else:
            client.stream.say(Goodbye().encode())
        rigged.run()
        if end != "lost" and end != "in a batch":
            client.stream.lose()
        rigged.clients.clear()
        rigged.rig.clients.clear()
        for descriptor in client.stream.descriptors:
            os.close(descriptor)
        del client
    rigged.host.close()
    assert (len(open_descriptors()), regions_mapped()) == before


def regions_mapped() -> int:
    with open("/proc/self/maps") as maps:
        return sum("sigd-rings" in line for line in maps)


def test_a_new_model_answers_through_the_rings_too(make_rig: type[Rig]) -> None:
    rigged = RingRig(make_rig())
    busy, quiet = rigged.connect(), rigged.connect()
    for sequence in (1, 2, 3):
        busy.send(rigged.rig.request(sequence, 10))
        rigged.run()
    assert len(busy.answers()) == 3
    rigged.rig.swap()
    assert rigged.rig.backend.closed
    for client in (busy, busy, busy, quiet):
        client.send(rigged.rig.request(4, 10))
        rigged.run()
        view = client.responses.slot(client.responses.taken % client.responses.ring_slots)
        generation = int.from_bytes(view[44:48], "little")
        output = struct.unpack_from("<f", view, 56)[0]
        assert client.answers() == [(4, Status.OK)]
        assert (generation, output) == (2, 20.0)


def test_of_many_rings_the_quiet_ones_sleep(make_rig: type[Rig]) -> None:
    rigged = RingRig(make_rig())
    clients = [rigged.connect() for _ in range(AWAKE_MAX + 3)]
    rigged.loop.beat()
    assert awake(clients) == len(clients), "they have just come"
    for client in clients[:2]:
        client.send(rigged.rig.requests([1]))
    rigged.run()
    rigged.loop.beat()
    assert awake(clients) == AWAKE_MAX, "as many as are worth looking at"
    assert awake(clients[:2]) == 2, "those that were busy among them"
    for client in clients:
        client.send(rigged.rig.requests([2]))
    rigged.run()
    assert all((2, Status.OK) in client.answers() for client in clients)


def test_many_rings_have_their_beats_in_turns(make_rig: type[Rig]) -> None:
    """And each of them in time, those that have just come among them, whatever other clients go meanwhile."""
    rigged = RingRig(make_rig())
    clients = [rigged.connect() for _ in range(2 * BEATEN_AT_ONCE)]

    def beaten() -> int:
        rigged.rig.clock.now_ns += 1
        rigged.loop.beat()
        return sum(client.region.daemon_heartbeat_ns == rigged.rig.clock.now_ns for client in clients)

    assert [beaten() for _ in range(2)] == [BEATEN_AT_ONCE] * 2
    assert rigged.loop.delay_s == BEAT_S / 2
    for _ in range(5):
        clients.pop().stream.lose()
    clients.append(rigged.connect())
    before_ns = rigged.rig.clock.now_ns
    for _ in range(3):
        beaten()
    assert all(client.region.daemon_heartbeat_ns > before_ns for client in clients)
    for client in clients[10:]:
        client.stream.lose()
    for _ in range(3):
        beaten()
    assert beaten() == 10, "few enough to have it together again"
    assert rigged.loop.delay_s == BEAT_S


def awake(clients: list[RingClient]) -> int:
    return sum(rings_of(client).awake for client in clients)


def rings_of(client: RingClient) -> SessionRings:
    # How often it was woken is counted inside, for no client sees it.
    rings = client.session._rings
    assert isinstance(rings, SessionRings)
    return rings


@pytest.mark.parametrize("lacking", ["memory", "descriptors", "asynchronous I/O", "the machine"])
def test_what_is_lacking_is_told(rigged: RingRig, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28 if lacking == "memory" else 24, "No space" if lacking == "memory" else "Too many")

    gc.collect()
    before = len(open_descriptors())
    if lacking == "memory":
        monkeypatch.setattr(os, "ftruncate", refuse)
    elif lacking == "descriptors":
        monkeypatch.setattr(os, "memfd_create", refuse)
    elif lacking == "the machine":
        monkeypatch.setattr(shared_memory, "why_not_here", lambda: "this machine is a toaster")
    else:
        monkeypatch.setattr("sigd.daemon.transport.doorbell.IO_SETUP", 100_000)
    client = rigged.rig.client(rigged.host.open)
    client.say(Hello(transport=Transport.SHARED_MEMORY).encode())
    (reject,) = client.received()
    assert isinstance(reject, Reject)
    assert reject.code == RejectCode.TRANSPORT_UNAVAILABLE
    expected = {"memory": "No space", "descriptors": "Too many", "the machine": "toaster"}
    assert expected.get(lacking, "no asynchronous I/O") in reject.reason
    if lacking in expected and lacking != "the machine":
        rigged.host.close()
    assert len(open_descriptors()) == before
    assert rigged.rig.connect().session.serving, "the stream is still there"


@pytest.mark.parametrize(
    ("found", "connections", "looked"),
    [
        (ANSWERED, 1, 32),
        (ANSWERED, 2, 4),
        (EMPTY, 1, 128),
        (EMPTY, 2, 8),
        (HANDED_OVER, 1, 1),
        (HANDED_OVER, 2, 1),
    ],
)
def test_one_round_keeps_other_clients_waiting_for_a_few_requests_only(
    rigged: RingRig, found: Found, connections: int, looked: int
) -> None:
    rigged.connect()
    rigged.rig.client_counters.connections_open = connections
    looks = []

    def look() -> Found:
        looks.append(found)
        return found

    # What one look finds is put in its place: rings alone make no such findings to order.
    rigged.host._poll_round = make_poll_round(look)
    assert rigged.poll() is (found != EMPTY)
    assert len(looks) == looked


@pytest.mark.parametrize("head", [0, 1, 2])
def test_a_head_that_runs_backwards_behind_what_was_answered_at_once_ends_the_session(
    make_rig: type[Rig], head: int
) -> None:
    rigged = RingRig(make_rig())
    client, neighbour = rigged.connect(), rigged.connect()
    for sequence in range(3):
        client.send(rigged.rig.requests([sequence]))
        rigged.run()
    client.write_word("request_head", head)
    rigged.run()
    reject = client.rejected()
    assert (reject.code, reject.reason) == (RejectCode.PROTOCOL_VIOLATION, f"head at {head}, expected 3..259")
    neighbour.send(rigged.rig.requests([5]))
    rigged.run()
    assert neighbour.answers() == [(5, Status.OK)]


@pytest.mark.parametrize("count", [2, 3])
def test_a_few_requests_are_answered_one_a_look(make_rig: type[Rig], count: int) -> None:
    rigged = RingRig(make_rig())
    client = rigged.connect()
    client.send(rigged.rig.requests([0]))
    rigged.run()
    client.answers()
    client.send(rigged.rig.requests(range(1, 1 + count)))
    rigged.poll()
    assert client.answers() == [(sequence, Status.OK) for sequence in range(1, 1 + count)]
    assert rigged.rig.counters.batches_by_rows[1] == 1 + count


@pytest.mark.parametrize("slots", [1, 2])
def test_a_head_ahead_of_a_short_ring_ends_the_session_however_few_it_says(
    make_rig: type[Rig], slots: int
) -> None:
    rigged = RingRig(make_rig())
    client = rigged.connect(ring_slots=slots)
    for sequence in range(slots):
        client.send(rigged.rig.requests([sequence]))
        rigged.run()
        client.answers()
    client.write_word("response_tail", slots)
    # Every slot holds a request that could be answered at once.
    client.write_word("request_head", 2 * slots + 1)
    rigged.run()
    reject = client.rejected()
    expected = f"head at {2 * slots + 1}, expected {slots}..{2 * slots}"
    assert (reject.code, reject.reason) == (RejectCode.PROTOCOL_VIOLATION, expected)


def test_where_no_bell_is_heard_a_beat_looks(rigged: RingRig) -> None:
    client = rigged.connect()
    assert rigged.host.may_sleep()
    assert client.requests.publish(rigged.rig.requests([1])), "the bell is to be rung, and is not"
    assert rigged.loop.turn() == 0
    rigged.run()
    assert client.answers() == []
    wakes = rigged.wakes
    rigged.loop.beat()
    assert rigged.wakes == wakes + 1
    rigged.run()
    assert client.answers() == [(1, Status.OK)]
    assert rigged.host.may_sleep()
    rigged.loop.beat()
    # That it sleeps shows nowhere else: it answers all the same.
    assert rigged.host._awake == (), "where nothing has come it sleeps on"
