"""Several clients and whatever can happen to them: every request gets one answer, in order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.models.errors import BackendFailed
from sigd.wire.messages import Heartbeat, Hello
from sigd.wire.status import GoodbyeCode, HelloFlag, Status

if TYPE_CHECKING:
    from tests.daemon.conftest import Answer, Rig

pytestmark = pytest.mark.usefixtures("each_fast_path")

NAN_OUTPUT = -7.0
MS = 1_000_000


KINDS = ("good", "nan", "late", "soon", "nan output", "longer")
clients_of_three = st.integers(0, 2)
events = st.one_of(
    st.tuples(st.just("write"), clients_of_three, st.lists(st.sampled_from(KINDS), min_size=1, max_size=30)),
    st.tuples(st.just("deliver"), clients_of_three, st.one_of(st.integers(1, 200), st.just(1 << 20))),
    st.tuples(st.just("heartbeat"), clients_of_three, st.integers(1, 40)),
    st.tuples(st.just("poll"), st.just(0), st.just(None)),
    st.tuples(st.just("finish"), st.just(0), st.just(None)),
    st.tuples(st.just("wait"), st.just(0), st.integers(1, 3 * MS)),
    st.tuples(st.just("fail"), st.just(0), st.booleans()),
    st.tuples(st.just("turn"), clients_of_three, st.just(None)),
    st.tuples(st.sampled_from(["end", "lose", "drain", "wind up"]), clients_of_three, st.just(None)),
)

ALLOWED = {
    "good": {Status.OK},
    "longer": {Status.OK},
    "nan": {Status.BAD_INPUT},
    "late": {Status.EXPIRED},
    "soon": {Status.OK, Status.EXPIRED},
    "nan output": {Status.MODEL_ERROR},
}


class Story:
    """Applies events to a rig and keeps the account of who is owed what."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        flags = (HelloFlag.NONE, HelloFlag.CONFLATE, HelloFlag.NONE)
        self.clients = [rig.connect(flags=flag) for flag in flags]
        self.written: list[list[str]] = [[], [], []]
        self.answered: list[list[Answer]] = [[], [], []]
        self.lost: set[int] = set()
        self.ended: set[int] = set()
        self.drained: set[int] = set()
        self.heartbeats = 0
        self.failed = False

    def apply(self, event: str, index: int, detail: object) -> None:
        rig, client = self.rig, self.clients[index]
        alive = index not in self.lost and index not in self.ended and not client.finished
        if event == "poll":
            rig.batcher.poll()
        elif event == "finish":
            rig.backend.finished = True
        elif event == "wait":
            assert isinstance(detail, int)
            rig.clock.now_ns += detail
        elif event == "fail":
            rig.backend.failure = BackendFailed("by chance") if detail else OSError("by surprise")
            self.failed = True
        elif not alive:
            return
        elif event == "write":
            assert isinstance(detail, list)
            for kind in detail:
                client.write(self.frame(index, kind))
        elif event == "deliver":
            assert isinstance(detail, int)
            client.deliver(detail)
        elif event == "heartbeat":
            assert isinstance(detail, int)
            client.write(Heartbeat(0).encode() * detail)
        elif event == "turn":
            client.take_turn()
        else:
            self.finish(event, index)

    def finish(self, event: str, index: int) -> None:
        client = self.clients[index]
        if event == "end" and not client.paused:
            # The end of the stream is read only once everything before it is.
            while client.deliver():
                pass
            if not client.unread:
                client.end()
                self.ended.add(index)
        elif event == "lose":
            self.take(index)
            client.lose()
            self.lost.add(index)
        elif event == "drain":
            client.session.drain(GoodbyeCode.DRAINING)
            self.drained.add(index)
        elif event == "wind up":
            client.session.wind_up(self.rig.clock())
            self.ended.add(index)
            self.drained.add(index)

    def frame(self, index: int, kind: str) -> bytes:
        sequence = len(self.written[index])
        self.written[index].append(kind)
        now_ns = self.rig.clock.now_ns
        return self.rig.request(
            sequence,
            math.nan if kind == "nan" else sequence,
            index,
            NAN_OUTPUT if kind == "nan output" else 0,
            deadline_ns={"late": now_ns - 1, "soon": now_ns + MS}.get(kind, 0),
            instrument_id=sequence % 3,
            version=2 if kind == "longer" else 1,
            longer_bytes=24 if kind == "longer" else 0,
        )

    def take(self, index: int) -> None:
        for item in self.clients[index].received():
            if isinstance(item, Heartbeat):
                self.heartbeats += 1
            elif hasattr(item, "sequence"):
                self.answered[index].append(item)  # type: ignore[arg-type]

    def check(self) -> None:
        for index in range(3):
            if index in self.lost:
                continue
            self.take(index)
            answers = self.answered[index]
            assert [answer.sequence for answer in answers] == list(range(len(answers))), (
                "in order, none twice"
            )
            for answer in answers:
                self.check_answer(index, answer)

    def check_answer(self, index: int, answer: Answer) -> None:
        allowed = ALLOWED[self.written[index][answer.sequence]] | {Status.BUSY}
        if self.failed:
            allowed |= {Status.MODEL_ERROR}
        if index == 1:
            allowed |= {Status.CONFLATED}
        if index in self.drained:
            allowed |= {Status.DRAINING}
        assert answer.status in allowed
        assert answer.instrument_id == answer.sequence % 3
        if answer.status == Status.OK:
            assert answer.outputs == (answer.sequence, index)
        else:
            assert all(map(math.isnan, answer.outputs))


@given(synchronous=st.booleans(), story=st.lists(events, max_size=60))
def test_every_request_gets_one_answer_in_order_whatever_happens(
    make_rig: type[Rig], synchronous: bool, story: list[tuple[str, int, object]]
) -> None:
    rig = make_rig(synchronous=synchronous, in_flight_max=20, rows_pending_max=50)
    told = Story(rig)
    for event in story:
        told.apply(*event)
        told.check()
    rig.run()
    told.check()
    assert rig.batcher.pending_rows == 0
    assert rig.batcher.idle
    for index, client in enumerate(told.clients):
        if index not in told.lost and index not in told.ended:
            assert len(told.answered[index]) == len(told.written[index]), "everything is answered"
            assert not client.paused
    counted = sum(rig.counters.by_status)
    received = sum(map(len, told.answered))
    assert received <= counted if told.lost else received == counted
    if not told.lost:
        assert told.heartbeats == rig.client_counters.heartbeats


@given(st.data())
def test_hello_and_requests_in_pieces_of_any_size(make_rig: type[Rig], data: st.DataObject) -> None:
    rig = make_rig(synchronous=data.draw(st.booleans()))
    client = rig.client()
    count = data.draw(st.integers(0, 40))
    client.write(Hello().encode() + rig.requests(range(count)))
    while client.unread:
        client.deliver(data.draw(st.integers(1, 400)))
        if data.draw(st.booleans()):
            rig.backend.finished = True
            rig.batcher.poll()
    rig.run()
    _, *answers = client.received()
    assert [answer.sequence for answer in answers] == list(range(count))  # type: ignore[union-attr]
