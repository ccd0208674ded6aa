"""Steps of kept history: every answer is, to the bit, what the same backend gives for the whole window, and
every status says whether the daemon has the step."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.daemon.conftest import Answer, FakeClient, Rig, answer_of
from tests.daemon.transport.test_rings import RingClient, RingRig

from sigd.daemon.config.limits import Limits
from sigd.daemon.serving import native_fast_path
from sigd.daemon.serving import session as session_module
from sigd.daemon.serving.batcher import Batcher
from sigd.daemon.serving.fast_path import never, receive_nothing
from sigd.daemon.serving.session import Session
from sigd.daemon.transport import rings as rings_module
from sigd.models.denormals import float_environment_kept
from sigd.models.native.backend import NativeBackend, kernels_are_built
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.registry import open_backend
from sigd.wire.client.request_outbox import RequestOutbox
from sigd.wire.layout import response_frame_bytes
from sigd.wire.messages import Hello, Reject, Welcome
from sigd.wire.ring import why_not_here
from sigd.wire.status import STEP_STORED, HelloFlag, RejectCode, RequestFlag, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

    from sigd.models.backend import Backend

STEPS, FEATURES, INSTRUMENTS_MAX, IN_FLIGHT_MAX = 3, 4, 3, 8
RESET, STORE_ONLY = RequestFlag.RESET, RequestFlag.STORE_ONLY
GIVE_UP = RESET | STORE_ONLY
BATCH_ROWS = {"onnxruntime": 1, "native": 8}
"""ONNX Runtime's last bits depend on the batch, so there each window runs alone."""
HISTORY = ReadOptions(history=HistoryOptions())


@dataclass(frozen=True)
class Step:
    """A request: which instrument, what of its values, flags and deadline."""

    instrument: int
    values: str = "drawn"
    flags: RequestFlag = RequestFlag.NONE
    late: bool = False


STEP = st.builds(
    Step,
    st.integers(0, 4),
    st.sampled_from(["drawn"] * 8 + ["bad", "none"]),
    st.sampled_from([RequestFlag.NONE] * 8 + [RESET, STORE_ONLY, GIVE_UP]),
    st.sampled_from([False, False, False, True]),
)
BURSTS = st.lists(st.lists(STEP, max_size=IN_FLIGHT_MAX + 3) | st.just("reload"), max_size=12)


class Models:
    """Two models of one shape on a backend: each to serve, and once more to ask for whole windows."""

    def __init__(self, maker: ModelMaker, name: str, kind: str = "lstm") -> None:
        self.name = name
        make = maker.tcn if kind == "tcn" else maker.lstm
        self.paths = [make(STEPS, FEATURES, outputs=2, seed=seed) for seed in (1, 2)]
        self.whole = [self.open(number) for number in (0, 1)]

    def open(self, number: int) -> Backend:
        return open_backend(self.paths[number], self.name, BATCH_ROWS[self.name], reading=HISTORY)

    def answer(self, number: int, window: list[npt.NDArray[np.float32]]) -> tuple[float, ...]:
        backend = self.whole[number]
        backend.inputs[0] = np.concatenate(window)
        backend.submit(1)
        return tuple(backend.outputs[0].tolist())


@pytest.fixture(scope="module", params=["onnxruntime", "native", "native tcn"])
def served(request: pytest.FixtureRequest, models: ModelMaker) -> Iterator[Models]:
    name, _, kind = request.param.partition(" ")
    if name == "native" and not kernels_are_built():
        pytest.skip("the native kernels are not built")
    # Other modules' tests must not inherit that denormals are flushed.
    with float_environment_kept():
        made = Models(models, name, kind)
    yield made
    for backend in made.whole:
        backend.close()


class Client:
    """A client of a rig that serves a window, over a stream or through rings."""

    def __init__(
        self, served: Models, rings: bool, *, in_flight_max: int = IN_FLIGHT_MAX, **asked: Any
    ) -> None:
        self.rig = Rig(limits=Limits(in_flight_max=in_flight_max, history_instruments_max=INSTRUMENTS_MAX))
        rig = self.rig
        rig.batcher = Batcher(
            served.open(0),
            rig.counters,
            rig.clock,
            wake=rig._wake,
            on_fatal=rig.fatal.append,
            limits=rig.limits,
        )
        asked = {"flags": HelloFlag.HISTORY, **asked}
        self._rings = RingRig(rig) if rings else None
        self._client = rig.connect(**asked) if self._rings is None else self._rings.connect(**asked)
        self._sent = 0

    def ask(self, burst: list[tuple[Step, npt.NDArray[np.float32]]]) -> list[Answer]:
        """Send steps together; all answers."""
        frames = [self._frame(step, row) for step, row in burst]
        if self._rings is None:
            assert isinstance(self._client, FakeClient)
            self._client.say(*frames)
            self.rig.run()
            return self._client.answers()
        assert isinstance(self._client, RingClient)
        self._client.send(b"".join(frames))
        self._rings.run()
        return taken(self._client)

    @property
    def session(self) -> Session:
        return self._client.session

    def swap(self, backend: Backend) -> None:
        self.rig.batcher.swap(backend, lambda old: old.close())

    def _frame(self, step: Step, row: npt.NDArray[np.float32]) -> bytes:
        self._sent += 1
        deadline_ns = self.rig.clock() - 1 if step.late else 0
        outbox = RequestOutbox(len(row))
        return bytes(outbox.encode_single(row, self._sent, 0, deadline_ns, step.instrument, step.flags))

    def close(self) -> None:
        self.rig.batcher.backend.close()
        if self._rings is not None:
            assert isinstance(self._client, RingClient)
            self._client.session.close()
            self._client.close()
            self._rings.host.close()


def taken(client: RingClient) -> list[Answer]:
    """All answers in its ring."""
    frame_bytes = response_frame_bytes(2)
    slots = client.welcome.ring_slots
    buffer = bytearray(slots * frame_bytes)
    count = client.responses.take(memoryview(buffer), slots)
    return [
        answer_of(bytes(buffer[at : at + frame_bytes])) for at in range(0, count * frame_bytes, frame_bytes)
    ]


class Reference:
    """What the contract says, with all steps in lists."""

    def __init__(self, conflate: bool) -> None:
        self.steps: dict[int, list[npt.NDArray[np.float32]]] = {}
        self._conflate = conflate

    def statuses(self, burst: list[tuple[Step, npt.NDArray[np.float32]]]) -> list[Status]:
        return [self._status(number, burst) for number in range(len(burst))]

    def _status(self, number: int, burst: list[tuple[Step, npt.NDArray[np.float32]]]) -> Status:
        step, row = burst[number]
        if number >= IN_FLIGHT_MAX:
            return Status.BUSY
        if step.flags == GIVE_UP and step.values == "none":
            self.steps.pop(step.instrument, None)
            return Status.STORED
        if step.values != "drawn":
            return Status.BAD_INPUT
        if step.instrument not in self.steps and len(self.steps) == INSTRUMENTS_MAX:
            return Status.BUSY
        before = [] if step.flags & RESET else self.steps.get(step.instrument, [])
        self.steps[step.instrument] = [*before, row][-STEPS:]
        if step.flags & STORE_ONLY:
            return Status.STORED
        if len(self.steps[step.instrument]) < STEPS:
            return Status.WARMING_UP
        if step.late:
            return Status.EXPIRED
        return Status.CONFLATED if self._conflate and self._overtaken(number, burst) else Status.OK

    @staticmethod
    def _overtaken(number: int, burst: list[tuple[Step, npt.NDArray[np.float32]]]) -> bool:
        for later, _ in burst[number + 1 : IN_FLIGHT_MAX]:
            if later.instrument != burst[number][0].instrument:
                continue
            if later.flags == GIVE_UP or (later.flags & RESET and later.values == "drawn"):
                return False
            if later.values == "drawn" and not later.late and not later.flags & STORE_ONLY:
                return True
        return False


def with_rows(burst: list[Step], draw: np.random.Generator) -> list[tuple[Step, npt.NDArray[np.float32]]]:
    rows = draw.standard_normal((len(burst), FEATURES)).astype(np.float32)
    for step, row in zip(burst, rows, strict=True):
        if step.values != "drawn":
            row[slice(None) if step.values == "none" else 1] = np.nan
    return list(zip(burst, rows, strict=True))


NEEDS_RINGS = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())
RINGS = [False, pytest.param(True, marks=NEEDS_RINGS)]


@pytest.mark.parametrize("rings", RINGS, ids=["stream", "rings"])
@given(bursts=BURSTS, conflate=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_step_answers_as_its_whole_window_does(
    served: Models, rings: bool, bursts: list[list[Step] | str], conflate: bool
) -> None:
    asked = {"flags": HelloFlag.HISTORY | HelloFlag.CONFLATE} if conflate else {}
    client, reference = Client(served, rings, **asked), Reference(conflate)
    draw, number = np.random.default_rng(7), 0
    for burst in bursts:
        if isinstance(burst, str):
            number = 1 - number
            client.swap(served.open(number))
            continue
        # A client with rings holds back what its ring has no room for.
        rows = with_rows(burst[: IN_FLIGHT_MAX if rings else None], draw)
        windows: list[list[npt.NDArray[np.float32]]] = []
        statuses: list[Status] = []
        for place in range(len(rows)):
            statuses.append(reference._status(place, rows))
            windows.append(list(reference.steps.get(rows[place][0].instrument, [])))
        answers = client.ask(rows)
        assert [answer.status for answer in answers] == statuses
        for answer, window in zip(answers, windows, strict=True):
            if answer.status is Status.OK:
                assert answer.outputs == served.answer(number, window)
            else:
                assert np.isnan(answer.outputs).all()
    client.close()


def test_statuses_say_what_was_stored() -> None:
    stored = {
        Status.OK,
        Status.EXPIRED,
        Status.CONFLATED,
        Status.MODEL_ERROR,
        Status.WARMING_UP,
        Status.STORED,
    }
    assert stored == STEP_STORED
    assert set(Status) - STEP_STORED == {Status.BUSY, Status.BAD_INPUT, Status.DRAINING}


def hello(served: Models, **asked: Any) -> list[Any]:
    client = Client(served, rings=False)
    other = client.rig.client()
    other.say(Hello(**asked).encode())
    client.close()
    return list(other.received())


def test_welcome_names_the_steps_and_the_instruments(served: Models) -> None:
    (welcome,) = hello(served, flags=HelloFlag.HISTORY, features=FEATURES)
    assert isinstance(welcome, Welcome)
    assert (welcome.features, welcome.flags) == (FEATURES, HelloFlag.HISTORY)
    assert (welcome.history_steps, welcome.history_instruments_max) == (STEPS, INSTRUMENTS_MAX)


def test_client_that_does_not_ask_sends_whole_windows(served: Models) -> None:
    (welcome,) = hello(served, features=STEPS * FEATURES)
    assert isinstance(welcome, Welcome)
    assert (welcome.features, welcome.flags) == (STEPS * FEATURES, HelloFlag.NONE)
    assert (welcome.history_steps, welcome.history_instruments_max) == (0, 0)


@pytest.mark.parametrize("flags", [HelloFlag.HISTORY, HelloFlag.NONE])
def test_other_number_of_features_is_refused(served: Models, flags: HelloFlag) -> None:
    (reject,) = hello(served, flags=flags, features=FEATURES + 1)
    assert isinstance(reject, Reject)
    assert reject.code == RejectCode.SHAPE_MISMATCH


def test_windows_of_one_client_are_not_those_of_another(served: Models) -> None:
    client = Client(served, rings=False)
    other = Client.__new__(Client)
    other.rig, other._rings, other._sent = client.rig, None, 0
    other._client = client.rig.connect(flags=HelloFlag.HISTORY)
    row = np.ones(FEATURES, np.float32)
    ask: Callable[[Client], Status] = lambda one: one.ask([(Step(1), row)])[0].status
    assert [ask(client) for _ in range(STEPS)] == [Status.WARMING_UP] * (STEPS - 1) + [Status.OK]
    assert ask(other) is Status.WARMING_UP
    client.close()


@pytest.fixture
def whole_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native backend runs whole windows, as it does for a model of another kind."""
    monkeypatch.setattr(NativeBackend, "follow", lambda self, windows: None)


def refuse_fast_paths(patch: pytest.MonkeyPatch) -> None:
    """A session that makes a fast path, in C or in Python, fails."""

    def made(*_: object) -> None:
        raise AssertionError("a fast path was made for a session whose history is kept")

    for owner, name in (
        (native_fast_path, "make_stream"),
        (native_fast_path, "make_ring"),
        (session_module, "make_fast_path"),
        (rings_module, "make_ring_poll"),
    ):
        patch.setattr(owner, name, made)


@pytest.mark.usefixtures("whole_windows")
@pytest.mark.parametrize("rings", RINGS, ids=["stream", "rings"])
def test_no_fast_path_is_made_for_whole_windows(
    served: Models, rings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_fast_paths(monkeypatch)
    client = Client(served, rings)
    row = np.ones(FEATURES, np.float32)
    for number in (0, 1):
        answers = [client.ask([(Step(1), row)])[0] for _ in range(STEPS)]
        assert answers[-1].outputs == served.answer(number, [row] * STEPS)
        batcher, session = client.rig.batcher, client.session
        assert batcher.fast_path_owner is session, "the session could use one, if it had one"
        assert (session.fast_path, session.receive_round) == (never, receive_nothing)
        client.swap(served.open(1))
    client.close()


@pytest.mark.usefixtures("whole_windows")
def test_socket_of_whole_windows_is_read_by_the_loop_alone(served: Models) -> None:
    client = Client(served, rings=False)
    client.ask([(Step(1), np.ones(FEATURES, np.float32))] * STEPS)
    here, there = socket.socketpair()
    with here, there:
        here.send(b"a step")
        assert client.session.receive_round(there.fileno(), 8, 4) == 0
        assert there.recv(16) == b"a step"
    client.close()


@pytest.mark.parametrize("rings", RINGS, ids=["stream", "rings"])
@pytest.mark.parametrize("flags", [RESET, STORE_ONLY, GIVE_UP, RequestFlag(0xFFFF)])
def test_flags_of_requests_say_nothing_without_history(
    served: Models, rings: bool, flags: RequestFlag
) -> None:
    client = Client(served, rings, flags=HelloFlag.NONE)
    window = np.random.default_rng(3).standard_normal(STEPS * FEATURES).astype(np.float32)
    gone = np.full(STEPS * FEATURES, np.nan, np.float32)
    asked = (Step(9, flags=flags), window)
    # The batch path first, then the fast path that it opens, then several at once.
    for burst in ([asked], [asked], [asked] * 3):
        for answer in client.ask(burst):
            assert (answer.status, answer.instrument_id, answer.model_generation) == (Status.OK, 9, 1)
            assert answer.outputs == served.answer(0, [window])
    assert [answer.status for answer in client.ask([(Step(9, flags=flags), gone)])] == [Status.BAD_INPUT]
    client.close()
