"""A batcher with nothing real around it: a clock that stands still, a backend of two lines whose completion
the test decides, and clients whose transport is a list of bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sigd.daemon.config.limits import Limits
from sigd.daemon.runtime.process import ignore_overflow
from sigd.daemon.serving import native_fast_path
from sigd.daemon.serving.batcher import Batcher
from sigd.daemon.serving.counters import ClientCounters, ModelCounters
from sigd.daemon.serving.ports import OpenRings, SessionTaps
from sigd.daemon.serving.session import Session
from sigd.models.errors import BackendFailed
from sigd.models.spec import ModelSpec
from sigd.wire import fields
from sigd.wire.framer import Framer
from sigd.wire.layout import frame_dtype, header_word, request_frame_bytes
from sigd.wire.messages import Goodbye, Heartbeat, Hello, ModelInfo, Reject, Welcome
from sigd.wire.status import Status

FEATURES = 4
OUTPUTS = 2
NAN_OUTPUT = -7.0
INF_OUTPUT = -8.0
FAILS = -9.0
_UNFINISHED = 12_345.0


class FakeClock:
    """Stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns


class FakeBackend:
    """Gives the first two features times `factor` as outputs; a third feature of NAN_OUTPUT or INF_OUTPUT
    spoils its row's, and one of FAILS fails the batch.

    Attributes:
        batches: a copy of the rows of each batch that was submitted.
        run_ns: how far the clock moves while a batch runs.
        failure: raised by the next batch, at submit() or, where it is asynchronous, at ready().
        broken: raised by every batch.
        finished: where it is asynchronous, whether the batch that runs is done.
        looks: where it is asynchronous, after how many looks a batch is done by itself; None is never. Each
            takes 1 us.
        closed: nothing may be run on it any more.
    """

    name = "fake"

    def __init__(
        self, clock: FakeClock, batch_rows_max: int, *, synchronous: bool, factor: float = 1.0
    ) -> None:
        self.spec = ModelSpec(
            "fake",
            Path("fake.onnx"),
            bytes(range(32)),
            "in",
            "out",
            FEATURES,
            OUTPUTS,
            (FEATURES,),
            (OUTPUTS,),
            None,
            17,
        )
        self.batch_rows_max = batch_rows_max
        self.synchronous = synchronous
        self.inputs = np.zeros((batch_rows_max, FEATURES), np.float32)
        self.outputs = np.zeros((batch_rows_max, OUTPUTS), np.float32)
        self.batches: list[npt.NDArray[np.float32]] = []
        self.run_ns = 0
        self.failure: Exception | None = None
        self.broken: Exception | None = None
        self.finished = False
        self.looks: int | None = None
        self._looked = 0
        self.factor = factor
        self.closed = False
        self._clock = clock
        self._running: npt.NDArray[np.float32] | None = None

    @property
    def rows_run(self) -> int:
        """Rows that the model has run."""
        return sum(map(len, self.batches))

    def open(self) -> None:
        """It is."""

    def submit(self, rows: int) -> bool:
        assert 1 <= rows <= self.batch_rows_max
        assert self._running is None, "a batch is running"
        assert not self.closed
        self.batches.append(self.inputs[:rows].copy())
        if not self.synchronous:
            self._running = self.inputs.copy()
            self.outputs[:] = _UNFINISHED
            self.finished = False
            self._looked = 0
            return False
        self._finish(rows)
        return True

    def ready(self) -> bool:
        if self._running is None:
            return self.synchronous
        self._looked += 1
        if not self.finished and self._looked != self.looks:
            self._clock.now_ns += 1000
            return False
        assert np.array_equal(self.inputs, self._running, equal_nan=True), "written to while the batch ran"
        assert (self.outputs == _UNFINISHED).all(), "written to while the batch ran"
        self._running = None
        self._finish(len(self.batches[-1]))
        return True

    def _finish(self, rows: int) -> None:
        self._clock.now_ns += self.run_ns
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.broken is not None:
            raise self.broken
        if (self.inputs[:rows, 2] == FAILS).any():
            raise BackendFailed("index 50 is outside of 0 to 9")
        self.outputs[:rows] = self.inputs[:rows, :OUTPUTS] * self.factor
        self.outputs[:rows][self.inputs[:rows, 2] == NAN_OUTPUT, 1] = np.nan
        self.outputs[:rows][self.inputs[:rows, 2] == INF_OUTPUT, 0] = np.inf

    def bare_call(self, rows: int) -> Callable[[], object]:
        return lambda: self.submit(rows)

    def close(self) -> None:
        assert self._running is None, "a batch is running"
        self.closed = True


@pytest.fixture(scope="module", params=["python", "c"])
def each_fast_path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a module's tests on the fast path in Python, and on its twin in C where it is built."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            patch.setattr(native_fast_path, "Path", None)
        elif not native_fast_path.is_built():
            pytest.skip("the fast path in C is not built: python hatch_build.py")
        yield


@dataclass(frozen=True)
class Answer:
    """A SignalResponse as a value."""

    sequence: int
    client_time_ns: int
    receive_time_ns: int
    send_time_ns: int
    instrument_id: int
    model_generation: int
    infer_ns: int
    status: Status
    batch_rows: int
    outputs: tuple[float, ...]


Received = Answer | Welcome | Reject | Heartbeat | Goodbye | ModelInfo

_DECODERS: dict[int, Callable[[bytes], Received]] = {
    fields.WELCOME.template_id: Welcome.decode,
    fields.REJECT.template_id: Reject.decode,
    fields.HEARTBEAT.template_id: Heartbeat.decode,
    fields.GOODBYE.template_id: Goodbye.decode,
    fields.MODEL_INFO.template_id: ModelInfo.decode,
}


def answer_of(frame: bytes) -> Answer:
    """A whole frame."""
    row = np.frombuffer(frame, frame_dtype(fields.SIGNAL_RESPONSE, FEATURES, OUTPUTS))[0]
    return Answer(
        **{
            name: int(row[name])
            for name in (
                "sequence",
                "client_time_ns",
                "receive_time_ns",
                "send_time_ns",
                "instrument_id",
                "model_generation",
                "infer_ns",
                "batch_rows",
            )
        },
        status=Status(int(row["status"])),
        outputs=tuple(row["outputs"].tolist()),
    )


class FakeClient:
    """A client and its transport in one: what it writes waits in `unread` until `deliver()`.

    Attributes:
        raw: every byte that the session sent.
        finished: the session has closed the connection.
        descriptors: that came with the Welcome, the client's own.
        turns: how often the session has asked for the loop's next round, and not got it yet.
    """

    def __init__(self, rig: Rig, open_rings: OpenRings | None = None) -> None:
        self.rig = rig
        self.unread = bytearray()
        self.raw = bytearray()
        self.finished = False
        self.paused = False
        self.gone = False
        self.turns = 0
        self.descriptors: tuple[int, ...] = ()
        self.no_descriptors = ""
        self._framer = Framer(1 << 22)
        self._fed = 0
        self.session = Session(self, rig.find_model, rig.client_counters, open_rings)

    # -- what the session asks of its transport

    def send(self, data: memoryview | bytes) -> None:
        assert not self.finished, "sent after the end"
        if not self.gone:
            self.raw += data

    def send_descriptors(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        assert not self.raw, "not the first thing that is sent"
        self.descriptors = tuple(map(os.dup, descriptors))
        self.send(data)

    def why_no_descriptors(self) -> str:
        return self.no_descriptors

    def finish(self) -> None:
        assert not self.finished, "finished twice"
        self.finished = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def yield_turn(self) -> None:
        self.turns += 1

    # -- what a test does with it

    def write(self, *frames: bytes) -> None:
        """Put bytes on their way."""
        for frame in frames:
            self.unread += frame

    def deliver(self, count_bytes: int | None = None) -> int:
        """Hand over one read's worth, at most `count_bytes`; how many bytes were."""
        if self.paused or self.finished or self.gone or not self.unread:
            return 0
        room = self.session.writable()
        assert len(room), "reading, but no room"
        part = self.unread[: min(len(room), len(self.unread) if count_bytes is None else count_bytes)]
        room[: len(part)] = part
        del self.unread[: len(part)]
        self.session.arrived(len(part), self.rig.clock())
        return len(part)

    def say(self, *frames: bytes) -> None:
        """Put bytes on their way and hand over what can be."""
        self.write(*frames)
        while self.deliver():
            pass

    def take_turn(self) -> None:
        """The loop's next round."""
        turns, self.turns = self.turns, 0
        for _ in range(turns):
            self.session.turn(self.rig.clock())

    def end(self) -> None:
        """The client sends no more."""
        if not self.finished:
            self.session.ended(self.rig.clock())

    def lose(self) -> None:
        """The connection is gone."""
        self.gone = True
        self.session.lost()

    def received(self) -> list[Received]:
        """Everything that came since the last call, in order."""
        while self._fed < len(self.raw):
            room = self._framer.writable()
            part = self.raw[self._fed : self._fed + len(room)]
            room[: len(part)] = part
            self._framer.arrived(len(part))
            self._fed += len(part)
        received: list[Received] = []
        while (frame := self._framer.next_frame()) is not None:
            template_id = frame.header.template_id
            if template_id == fields.SIGNAL_RESPONSE.template_id:
                word = header_word(template_id, len(frame.block) + 8)
                received.append(answer_of(word.to_bytes(8, "little") + frame.block))
            else:
                received.append(_DECODERS[template_id](frame.block))
        return received

    def answers(self) -> list[Answer]:
        """As `received`, where nothing but answers has come."""
        received = self.received()
        answers = [item for item in received if isinstance(item, Answer)]
        assert answers == received
        return answers

    def statuses(self) -> list[tuple[int, Status]]:
        """As `answers`: sequence and status of each."""
        return [(answer.sequence, answer.status) for answer in self.answers()]


class Rig:
    """A batcher with its fakes."""

    def __init__(
        self,
        *,
        synchronous: bool = True,
        batch_rows_max: int = 8,
        linger_ns: int = 0,
        limits: Limits | None = None,
        taps: SessionTaps | None = None,
        **bounds: Any,
    ) -> None:
        self.clock = FakeClock()
        self.counters = ModelCounters(batch_rows_max)
        self.client_counters = ClientCounters()
        self.limits = replace(limits or Limits(daemon_pid=4321), **bounds)
        self.backend = FakeBackend(self.clock, batch_rows_max, synchronous=synchronous)
        self.wakes = 0
        self.fatal: list[BackendFailed] = []
        self.clients: list[FakeClient] = []
        self.successors: list[FakeBackend] = []
        self.batcher = Batcher(
            self.backend,
            self.counters,
            self.clock,
            wake=self._wake,
            on_fatal=self.fatal.append,
            limits=self.limits,
            linger_ns=linger_ns,
            taps=taps,
        )

    def _wake(self) -> None:
        self.wakes += 1

    def find_model(self, name: str) -> Batcher | None:
        return self.batcher if name in ("", "fake") else None

    def swap(
        self, factor: float = 2.0, *, batch_rows_max: int = 8, synchronous: bool | None = None
    ) -> FakeBackend:
        """Have another model take over; it is closed when a third one has."""
        synchronous = self.backend.synchronous if synchronous is None else synchronous
        successor = FakeBackend(self.clock, batch_rows_max, synchronous=synchronous, factor=factor)
        self.successors.append(successor)
        self.batcher.swap(successor, lambda old: old.close())
        return successor

    def client(self, open_rings: OpenRings | None = None) -> FakeClient:
        """A connection that has said nothing yet."""
        client = FakeClient(self, open_rings)
        self.clients.append(client)
        return client

    def connect(self, **asked: Any) -> FakeClient:
        """A connection after Hello and Welcome."""
        client = self.client()
        client.say(Hello(**asked).encode())
        (welcome,) = client.received()
        assert isinstance(welcome, Welcome)
        return client

    def run(self, rounds: int = 10_000) -> None:
        """Rounds of the loop until nothing is left to do; an asynchronous batch finishes in the next
        round."""
        for _ in range(rounds):
            for client in self.clients:
                client.take_turn()
            delivered = sum(client.deliver() for client in self.clients)
            for backend in (self.backend, *self.successors):
                backend.finished = True
            if not (self.batcher.poll() or delivered or any(client.turns for client in self.clients)):
                return
        raise AssertionError("the loop does not come to rest")

    @staticmethod
    def request(
        sequence: int,
        *features: float,
        deadline_ns: int = 0,
        instrument_id: int = 0,
        client_time_ns: int = 0,
        version: int = 1,
        longer_bytes: int = 0,
    ) -> bytes:
        """One SignalRequest; features that are not given are 0. A newer version may be longer."""
        frame = np.zeros(1, frame_dtype(fields.SIGNAL_REQUEST, FEATURES, OUTPUTS))
        frame["sequence"] = sequence
        frame["client_time_ns"] = client_time_ns
        frame["deadline_ns"] = deadline_ns
        frame["instrument_id"] = instrument_id
        frame["features"][0, : len(features)] = features
        frame_bytes = request_frame_bytes(FEATURES) + longer_bytes
        word = header_word(fields.SIGNAL_REQUEST.template_id, frame_bytes, version)
        return word.to_bytes(8, "little") + frame.tobytes()[8:] + bytes([0xEE]) * longer_bytes

    @classmethod
    def requests(cls, sequences: Sequence[int], **fields_of_all: Any) -> bytes:
        """Requests whose first feature is their sequence."""
        return b"".join(cls.request(sequence, sequence, **fields_of_all) for sequence in sequences)


@pytest.fixture(autouse=True)
def _overflow_is_no_event() -> Iterator[None]:
    """As in the serving process, see `sigd.daemon.runtime.process.ignore_overflow`."""
    with np.errstate():
        ignore_overflow()
        yield


@pytest.fixture(scope="session")
def make_rig() -> type[Rig]:
    """Makes a batcher with its fakes."""
    return Rig


@pytest.fixture(params=[True, False], ids=["synchronous", "asynchronous"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """A batcher of at most 8 rows on a backend of either kind."""
    return Rig(synchronous=request.param)
