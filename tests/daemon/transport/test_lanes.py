"""Sessions that a lane serves: real threads, real rings and a native engine, beside a loop that the test
turns by hand."""

from __future__ import annotations

import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from tests.daemon.conftest import FEATURES, Answer, FakeClient, Rig
from tests.daemon.transport.test_rings import Loop, RingClient, RingRig

from sigd.daemon.admin.metrics.lane_families import LANE_FAMILIES
from sigd.daemon.config.config import LaneRealtime
from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.serving import native_lane
from sigd.daemon.serving.batcher import Batcher
from sigd.daemon.serving.counters import ModelCounters
from sigd.daemon.transport.lanes import Lanes
from sigd.models.registry import open_backend
from sigd.wire.layout import response_frame_bytes
from sigd.wire.messages import Goodbye
from sigd.wire.ring import why_not_here
from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

    from sigd.models.backend import Backend

pytestmark = [
    pytest.mark.skipif(bool(why_not_here()), reason=why_not_here()),
    pytest.mark.skipif(not native_lane.is_built(), reason="lanes are not built: python hatch_build.py"),
]

PATIENCE_S = 60.0
PRIORITY = 3
PLACES = 64
SLEEPS_AT_ONCE = 0


class LaneRig(RingRig):
    """A native engine whose clients get rings and a lane."""

    def __init__(
        self, model: Path, spin_ns: int | None = None, realtime: LaneRealtime | None = None, **batcher: Any
    ) -> None:
        rig: Any = Rig()
        rig.clock = monotonic_ns
        rig.backend = open_backend(model, "native", batch_rows_max=64)
        rig.counters = ModelCounters(64)
        self.lane_loop = Loop()
        loop: Any = self.lane_loop
        self.lanes = Lanes(loop, [min(os.sched_getaffinity(0))], spin_ns, realtime)
        rig.batcher = Batcher(
            rig.backend,
            rig.counters,
            monotonic_ns,
            wake=lambda: None,
            on_fatal=rig.fatal.append,
            limits=rig.limits,
            on_swap=self.lanes.swapped,
            **batcher,
        )
        rig.find_model = lambda _name: rig.batcher
        super().__init__(rig)
        self.host.lanes = self.lanes
        (self.lane,) = self.lanes
        self.lanes.start()

    def turn(self) -> None:
        """A round of the loop."""
        self.loop.turn()
        self.lane_loop.turn()
        self.poll()
        for client in self.clients:
            client.stream.take_turn()

    def until(self, condition: Callable[[], object]) -> None:
        """Turn until it holds."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            self.turn()
            assert time.monotonic() < deadline_s, "it never came"

    def lent(self, **asked: Any) -> RingClient:
        """A client whose rings the lane owns."""
        client = self.connect(**asked)
        self.until(lambda: is_lent(client))
        return client

    def swap(self, model: Path, backend: str = "native") -> Backend:
        """Have another model take over."""
        successor = open_backend(model, backend, batch_rows_max=64)
        self.rig.batcher.swap(successor, lambda old: old.close())
        return successor

    def end(self) -> None:
        """Close everything."""
        for client in self.clients:
            if not client.session.closed:
                client.session.close()
            for descriptor in client.stream.descriptors:
                os.close(descriptor)
        self.lanes.close()
        self.host.close()


def is_lent(client: RingClient) -> bool:
    rings: Any = client.session._rings
    return rings is not None and rings.is_lent


def frames_of(client: RingClient, rows: int) -> list[Answer]:
    """Answers that are there, at most so many."""
    buffer = bytearray(rows * response_frame_bytes(2))
    count = client.responses.take(memoryview(buffer), rows)
    teller = FakeClient(Rig())
    teller.raw += buffer[: count * response_frame_bytes(2)]
    return teller.answers()


def without_the_loop(client: RingClient, rows: int) -> list[Answer]:
    """Answers that come while nothing but the lane runs."""
    got: list[Answer] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while len(got) < rows:
        got += frames_of(client, rows - len(got))
        assert time.monotonic() < deadline_s, f"{len(got)} answers, expected {rows}"
    return got


def with_the_loop(rigged: LaneRig, client: RingClient, rows: int) -> list[Answer]:
    """Answers of lane and loop."""
    got: list[Answer] = []

    def all_there() -> bool:
        got.extend(frames_of(client, rows - len(got)))
        return len(got) == rows

    rigged.until(all_there)
    return got


def expected(backend: Backend, rows: list[list[float]]) -> list[tuple[float, ...]]:
    """What the batch path gives."""
    backend.inputs[: len(rows)] = np.array(rows, np.float32)
    backend.submit(len(rows))
    return [tuple(row) for row in backend.outputs[: len(rows)].tolist()]


def some_rows(count: int) -> list[list[float]]:
    rows = np.random.default_rng(count).standard_normal((count, FEATURES)).astype(np.float32)
    return [list(map(float, row)) for row in rows]


def frames(rows: list[list[float]], first: int = 0, **fields: Any) -> bytes:
    return b"".join(Rig.request(first + i, *row, **fields) for i, row in enumerate(rows))


def steep(models: ModelMaker) -> Path:
    """A model whose answers to large numbers are infinite."""
    weights = [
        numpy_helper.from_array(np.full((FEATURES, 2), 100.0, np.float32), "w"),
        numpy_helper.from_array(np.zeros(2, np.float32), "b"),
    ]
    dense = helper.make_node("Gemm", ["features", "w", "b"], ["logits"])
    return models.graph([dense], ["N", FEATURES], ["N", 2], weights)


@pytest.fixture
def model(models: ModelMaker) -> Path:
    return models.mlp(FEATURES, (8,), 2)


@pytest.fixture
def open_rig(model: Path) -> Iterator[Callable[..., LaneRig]]:
    rigs: list[LaneRig] = []

    def opened(spin_ns: int | None = None, **others: Any) -> LaneRig:
        rigs.append(LaneRig(model, spin_ns, **others))
        return rigs[-1]

    yield opened
    for rigged in rigs:
        rigged.end()


@pytest.fixture
def rigged(open_rig: Callable[..., LaneRig]) -> LaneRig:
    return open_rig()


@pytest.mark.parametrize("spin_ns", [None, 100_000, SLEEPS_AT_ONCE], ids=["spin", "backoff", "block"])
@pytest.mark.parametrize("together", [1, 3, 4, 7, 40])
def test_lane_answers_without_the_loop_the_bits_of_the_batch_path(
    open_rig: Callable[..., LaneRig], spin_ns: int | None, together: int
) -> None:
    rigged = open_rig(spin_ns)
    client = rigged.lent()
    rows = some_rows(40)
    outputs = expected(rigged.rig.backend, rows)
    got: list[Answer] = []
    for first in range(0, 40, together):
        part = rows[first : first + together]
        client.send(frames(part, first, client_time_ns=5, instrument_id=77))
        got += without_the_loop(client, len(part))
    assert [answer.sequence for answer in got] == list(range(40))
    assert [answer.outputs for answer in got] == outputs
    assert {answer.status for answer in got} == {Status.OK}
    assert {(one.client_time_ns, one.instrument_id, one.model_generation) for one in got} == {(5, 77, 1)}
    assert all(one.receive_time_ns + one.infer_ns == one.send_time_ns for one in got)
    counters = rigged.rig.counters
    assert counters.by_status[Status.OK] == counters.queue.count() == 40
    assert sum(rows * count for rows, count in enumerate(counters.batches_by_rows)) == 40
    assert counters.model.count() == sum(counters.batches_by_rows)
    assert counters.total.max_ns == max(one.infer_ns for one in got)


UNUSUAL: dict[str, tuple[dict[str, Any], Status]] = {
    "features": ({"features": (math.nan, 0, 0, 0)}, Status.BAD_INPUT),
    "deadline": ({"features": (1, 2, 3, 4), "deadline_ns": 1}, Status.EXPIRED),
    "outputs": ({"features": (1e38, 1e38, 1e38, 1e38)}, Status.MODEL_ERROR),
    "header": ({"features": (1, 2, 3, 4), "version": 9}, Status.OK),
}


@pytest.mark.parametrize("place", [0, 2, 9])
@pytest.mark.parametrize("reason", UNUSUAL)
def test_unusual_request_is_python_s_and_the_session_the_lane_s_again(
    rigged: LaneRig, models: ModelMaker, reason: str, place: int
) -> None:
    if reason == "outputs":
        rigged.swap(steep(models))
    client = rigged.lent()
    said = dict(UNUSUAL[reason][0])
    rows = some_rows(10)
    parts = [Rig.request(i, *row) for i, row in enumerate(rows)]
    parts[place] = Rig.request(place, *said.pop("features"), **said)
    client.send(b"".join(parts))
    got = with_the_loop(rigged, client, 10)
    assert [answer.sequence for answer in got] == list(range(10))
    assert got[place].status == UNUSUAL[reason][1]
    assert {one.status for one in got if one.sequence != place} == {Status.OK}
    assert rigged.lane.handed_over == {reason: 1}
    assert sum(rigged.rig.counters.by_status) == 10
    rigged.until(lambda: is_lent(client))
    client.send(frames(rows, 10))
    assert len(without_the_loop(client, 10)) == 10


@pytest.mark.parametrize("field", ["request_head", "response_tail"])
@pytest.mark.parametrize("value", [1 << 40, (1 << 64) - 1])
def test_counter_outside_the_rules_ends_the_session(rigged: LaneRig, field: str, value: int) -> None:
    neighbour, client = rigged.lent(), rigged.lent(ring_slots=1)
    if field == "response_tail":
        client.send(frames(some_rows(1)))
        without_the_loop(client, 1)
    client.write_word(field, value)
    if field == "response_tail":
        client.requests.publish(frames(some_rows(1), 1))
    rigged.until(lambda: client.session.closed)
    assert client.rejected().code == RejectCode.PROTOCOL_VIOLATION
    assert rigged.lane.handed_over == {"ring": 1}
    assert rigged.lane.sessions == 1
    neighbour.send(frames(some_rows(3)))
    assert len(without_the_loop(neighbour, 3)) == 3


def test_client_that_takes_no_answers_gets_all_of_them_later(rigged: LaneRig) -> None:
    client, neighbour = rigged.lent(ring_slots=4), rigged.lent()
    client.send(frames(some_rows(4)))
    rigged.until(lambda: client.requests.room() == 4)
    client.send(frames(some_rows(4), 4))
    neighbour.send(frames(some_rows(9)))
    assert len(without_the_loop(neighbour, 9)) == 9
    assert [one.sequence for one in without_the_loop(client, 8)] == list(range(8))


def test_sleeping_client_is_woken(rigged: LaneRig) -> None:
    client = rigged.lent()
    for number in range(70):  # more than the kernel keeps notices of at a time
        assert client.responses.may_sleep()
        client.send(frames(some_rows(1), number))
        assert select.select([client.response_bell], [], [], PATIENCE_S)[0]
        os.eventfd_read(client.response_bell)
        client.responses.awake()
        assert len(without_the_loop(client, 1)) == 1


def test_requests_beyond_a_conflating_clients_few_are_thinned_out(rigged: LaneRig) -> None:
    client = rigged.lent(flags=HelloFlag.CONFLATE)
    client.send(frames(some_rows(60), instrument_id=3))
    got = with_the_loop(rigged, client, 60)
    assert [one.sequence for one in got] == list(range(60))
    assert Status.CONFLATED in {one.status for one in got}
    assert got[-1].status == Status.OK
    assert rigged.lane.handed_over["conflated"] == 1


def test_reloads_under_load_lose_no_request_and_answer_with_the_generation_s_weights(
    rigged: LaneRig, models: ModelMaker
) -> None:
    files = [models.mlp(FEATURES, (8,), 2, seed=seed) for seed in range(1, 5)]
    rows = some_rows(8)
    clients = [rigged.lent() for _ in range(3)]
    answers: list[list[Answer]] = [[], [], []]
    stop = threading.Event()

    def ask(client: RingClient, got: list[Answer]) -> None:
        while not stop.is_set():
            client.send(frames(rows, len(got)))
            got += without_the_loop(client, len(rows))

    def have_more(before: list[int]) -> bool:
        return all(len(got) > count for got, count in zip(answers, before, strict=True))

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(clients, answers, strict=True)]
    for thread in threads:
        thread.start()
    rigged.until(partial(have_more, [0, 0, 0]))
    outputs = [expected(open_backend(rigged.rig.batcher.spec.path, "native"), rows)]
    for file in files * 5:
        outputs.append(expected(open_backend(file, "native"), rows))
        rigged.swap(file)
        answered = [len(got) for got in answers]
        rigged.until(partial(have_more, answered))
    rigged.until(lambda: all(got[-1].model_generation == 21 for got in answers))
    stop.set()
    for thread in threads:
        thread.join()
    assert rigged.rig.batcher.generation == 21
    for got in answers:
        assert [one.sequence for one in got] == list(range(len(got)))
        generations = [one.model_generation for one in got]
        assert generations == sorted(generations)
        assert {1, 21} <= set(generations)
        assert all(one.outputs == outputs[one.model_generation - 1][one.sequence % 8] for one in got)
    assert rigged.lane.handed_over == {}
    rigged.until(lambda: rigged.lane.native.reclaim() == 0)


def test_model_that_no_lane_runs_takes_its_sessions_out(rigged: LaneRig, models: ModelMaker) -> None:
    client = rigged.lent()
    client.send(frames(some_rows(5)))
    without_the_loop(client, 5)
    rigged.swap(models.mlp(FEATURES, (8,), 2), "onnxruntime")
    assert rigged.lane.sessions == 0
    client.send(frames(some_rows(5), 5))
    assert [one.sequence for one in with_the_loop(rigged, client, 5)] == list(range(5, 10))
    assert rigged.rig.counters.by_status[Status.OK] == 10
    rigged.swap(models.mlp(FEATURES, (8,), 2))
    client.send(frames(some_rows(5), 10))
    assert {one.model_generation for one in with_the_loop(rigged, client, 5)} == {3}
    rigged.until(lambda: is_lent(client))


def test_sessions_past_the_last_place_are_the_loop_s(rigged: LaneRig) -> None:
    clients = [rigged.connect(ring_slots=2) for _ in range(PLACES + 3)]
    rigged.until(lambda: sum(map(is_lent, clients)) == PLACES)
    assert rigged.lane.sessions == PLACES
    for client in clients:
        client.send(frames(some_rows(1)))
    for client in clients:
        assert len(with_the_loop(rigged, client, 1)) == 1
    clients[0].session.close()
    late = rigged.connect(ring_slots=2)
    rigged.until(lambda: is_lent(late))


@pytest.mark.parametrize("spin_ns", [None, SLEEPS_AT_ONCE], ids=["spin", "block"])
def test_client_that_is_lost_in_the_middle_leaves_nothing(
    open_rig: Callable[..., LaneRig], spin_ns: int | None
) -> None:
    rigged = open_rig(spin_ns)
    neighbour = rigged.lent()
    for _ in range(20):
        client = rigged.lent()
        client.send(frames(some_rows(30)))
        client.stream.lose()
        assert not is_lent(client)
        neighbour.send(frames(some_rows(2)))
        without_the_loop(neighbour, 2)
    assert rigged.lane.sessions == 1
    rigged.until(lambda: rigged.lane.native.reclaim() == 0)
    counters = rigged.rig.counters
    assert 40 <= counters.by_status[Status.OK] <= 640
    neighbour.session.close()
    assert counters.lanes == []


def test_draining_session_is_answered_by_the_loop(rigged: LaneRig) -> None:
    client = rigged.lent()
    client.session.drain(GoodbyeCode.DRAINING)
    assert not is_lent(client)
    client.send(frames(some_rows(2)))
    assert {one.status for one in with_the_loop(rigged, client, 2)} == {Status.DRAINING}
    assert not is_lent(client)


def test_goodbye_finds_nothing_left_to_answer(rigged: LaneRig) -> None:
    client = rigged.lent()
    client.send(frames(some_rows(50)))
    client.stream.say(Goodbye(GoodbyeCode.DONE).encode())
    rigged.until(lambda: client.session.closed)
    assert [one.sequence for one in frames_of(client, 50)] == list(range(50))


def test_lane_that_ends_while_it_is_busy_leaves_the_session_to_the_loop(rigged: LaneRig) -> None:
    client = rigged.lent()
    client.send(frames(some_rows(60)))
    rigged.lane.native.stop()
    client.session.close()
    got = frames_of(client, 60)
    assert [one.sequence for one in got] == list(range(len(got)))
    assert rigged.lane.sessions == 0


def test_recorded_sessions_are_the_loop_s(open_rig: Callable[..., LaneRig]) -> None:
    class Tap:
        def open(self, _session: object, *, in_rings: bool) -> Tap:
            return self

        def fast_path(self) -> Callable[[], None]:
            return lambda: None

        def fast_path_in_ring(self, _request: object, _outputs: object) -> Callable[..., None]:
            return lambda *_: None

        def record(self, rows: int, batch: int) -> None:
            """Nothing is kept."""

    rigged = open_rig(taps=Tap())
    client = rigged.connect()
    client.send(frames(some_rows(5)))
    assert len(with_the_loop(rigged, client, 5)) == 5
    assert rigged.lane.sessions == 0


def test_waiting_batches_are_the_loop_s(open_rig: Callable[..., LaneRig]) -> None:
    rigged = open_rig(linger_ns=1)
    assert native_lane.why_no_lane(rigged.rig.batcher) == "linger_us makes its batches wait"
    rigged.connect()
    assert rigged.lane.sessions == 0


def test_lane_that_makes_no_rounds_is_stalled(rigged: LaneRig) -> None:
    def watch() -> str:
        (callback,) = rigged.lane_loop.timers
        rigged.lane_loop.timers.clear()
        callback()
        return rigged.lanes.stalled

    before = rigged.lane.native.round
    rigged.until(lambda: rigged.lane.native.round > before + 2)
    assert watch() == ""
    rigged.lane.native.stop()
    watch()
    assert "has made no round" in watch()
    status = rigged.lane.status()
    assert (status.stalled, status.stalls >= 1) == (True, True)


@pytest.mark.parametrize(
    ("spin_ns", "asleep"), [(None, False), (SLEEPS_AT_ONCE, True)], ids=["spin", "block"]
)
def test_lane_s_status_and_series(
    open_rig: Callable[..., LaneRig], spin_ns: int | None, asleep: bool
) -> None:
    rigged = open_rig(spin_ns)
    client = rigged.lent()
    rigged.lent()
    client.send(frames(some_rows(9)) + Rig.request(9, math.nan, 0, 0, 0))
    assert len(with_the_loop(rigged, client, 10)) == 10
    rigged.until(lambda: rigged.lane.status().asleep == asleep and rigged.lane.lent == 2)
    rounds = rigged.lane.status().rounds
    rigged.until(lambda: rigged.lane.status().rounds > rounds)
    core = str(rigged.lane.core)
    source: Any = SimpleNamespace(lanes=rigged.lanes)
    told = {family.name: dict(family.read(source)) for family in LANE_FAMILIES}
    assert told["sigd_lane_sessions"] == {(core, "lane"): (2,), (core, "python"): (0,)}
    assert told["sigd_lane_requests"] == {(core,): (9,)}
    reasons = told["sigd_lane_handed_over"]
    assert reasons.pop((core, "features")) == (1,)
    assert set(reasons.values()) == {(0,)}
    assert told["sigd_lane_rounds"][(core,)] > (rounds,)
    assert told["sigd_lane_stalled"] == told["sigd_lane_stalled_seconds"] == {(core,): (0,)}
    status = rigged.lane.status()
    assert (status.sessions, status.lent, status.requests) == (2, 2, 9)
    assert status.handed_over == {"features": 1}


def why_not_realtime() -> str:
    """Why this process may not have real-time priority; "" where it may."""
    before = os.sched_getscheduler(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError as error:
        return f"real-time priority is not allowed here: {error.strerror}"
    os.sched_setscheduler(0, before, os.sched_param(0))
    return ""


needs_realtime = pytest.mark.skipif(bool(why_not_realtime()), reason=why_not_realtime())


def policies() -> list[tuple[int, int]]:
    """Scheduling policy and real-time priority of each lane's thread, as the kernel tells them."""
    found = []
    for thread in os.listdir("/proc/self/task"):
        try:
            name, _, fields = Path(f"/proc/self/task/{thread}/stat").read_text().partition(") ")
        except OSError:  # it has ended
            continue
        if name.endswith("(sigd-lane"):
            fields_from_3 = fields.split()
            found.append((int(fields_from_3[41 - 3]), int(fields_from_3[40 - 3])))
    return found


@needs_realtime
def test_lane_that_is_busy_for_too_long_is_ordinary_until_it_has_slept(
    open_rig: Callable[..., LaneRig], caplog: pytest.LogCaptureFixture
) -> None:
    rigged = open_rig(500_000, realtime=LaneRealtime(PRIORITY, 1_000_000))
    client = rigged.lent()
    rigged.until(lambda: rigged.lane.native.asleep)
    assert policies() == [(os.SCHED_FIFO, PRIORITY)]
    assert rigged.lane.status().realtime
    rows = some_rows(8)
    expected_rows = expected(rigged.rig.backend, rows)
    answered: list[Answer] = []
    seen: set[tuple[int, int]] = set()
    deadline_s = time.monotonic() + PATIENCE_S
    # It spins from one request to the next, and is awake all the time.
    while rigged.lane.native.yields < 3 or len(seen) < 2:
        client.send(frames(rows, len(answered)))
        answered += without_the_loop(client, len(rows))
        seen.add(policies()[0])
        assert time.monotonic() < deadline_s
    assert [answer.outputs for answer in answered[-8:]] == expected_rows
    assert [answer.sequence for answer in answered] == list(range(len(answered)))
    assert seen == {(os.SCHED_FIFO, PRIORITY), (os.SCHED_OTHER, 0)}
    rigged.lane.say_yields()
    rigged.lane.say_yields()
    (said,) = (record.message for record in caplog.records if "lane_busy_ms_max" in record.message)
    assert said.startswith(f"the lane on core {rigged.lane.core} was busy for longer than lane_busy_ms_max")
    rigged.until(lambda: rigged.lane.status().realtime and rigged.lane.native.asleep)
    assert policies() == [(os.SCHED_FIFO, PRIORITY)]
    status = rigged.lane.status()
    assert (status.priority, status.yields >= 3) == (PRIORITY, True)
    rigged.lane.native.stop()
    assert not rigged.lane.status().realtime


@needs_realtime
def test_lane_that_sleeps_between_its_requests_keeps_its_priority(open_rig: Callable[..., LaneRig]) -> None:
    rigged = open_rig(SLEEPS_AT_ONCE, realtime=LaneRealtime(PRIORITY, 500_000_000))
    client = rigged.lent()
    for first in range(20):
        rigged.until(lambda: rigged.lane.native.asleep)
        client.send(frames(some_rows(3), 3 * first))
        assert len(without_the_loop(client, 3)) == 3
    assert policies() == [(os.SCHED_FIFO, PRIORITY)]
    assert rigged.lane.status().yields == 0


def test_lane_that_never_sleeps_gets_no_priority() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        native_lane.open_lane(0, None, LaneRealtime(PRIORITY, 1_000_000))


MAY_NOT = f"""
import os, resource
from sigd.daemon.config.config import LaneRealtime
from sigd.daemon.errors import MissingDependency
from sigd.daemon.transport.lanes import try_lanes
core = min(os.sched_getaffinity(0))
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
try_lanes([core], 0, None)
try:
    try_lanes([core], 0, LaneRealtime({PRIORITY}, 1_000_000))
except MissingDependency as refused:
    print(refused)
"""


def test_priority_that_is_not_allowed_is_refused_with_what_allows_it() -> None:
    command = [sys.executable, "-P", "-c", MAY_NOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "lane_priority 3 is not allowed to this process" in done.stdout
    assert "its limit of real-time priority is 0" in done.stdout
    assert "LimitRTPRIO=3 and RestrictRealtime=no" in done.stdout
    assert MissingDependency.exit_code == 3


def test_core_that_is_not_there_is_refused() -> None:
    lanes = Lanes(Loop(), [1023], None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="lane_cpu 1023 is not one that this process may run on"):
        lanes.start()
    lanes.close()


def test_without_cores_there_is_no_lane() -> None:
    lanes = Lanes(Loop(), [], None)  # type: ignore[arg-type]
    lanes.start()
    assert list(lanes) == []
    lanes.close()
