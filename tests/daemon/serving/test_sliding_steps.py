"""Steps on the fast path: answered from the states of their windows, as their whole windows are on the batch
path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tests.daemon.conftest import FakeClock
from tests.daemon.serving.test_steps import (
    FEATURES,
    RESET,
    RINGS,
    STEPS,
    STORE_ONLY,
    Client,
    Models,
    Step,
)

from sigd.daemon.serving import batcher as batcher_module
from sigd.daemon.serving import native_fast_path
from sigd.daemon.serving.fast_path import never
from sigd.models.denormals import float_environment_kept
from sigd.models.native.backend import NativeBackend
from sigd.wire.client.request_outbox import RequestOutbox
from sigd.wire.messages import Hello
from sigd.wire.status import HelloFlag, RequestFlag, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import ModelMaker

pytest.importorskip("sigd.models.native._kernels")
pytestmark = pytest.mark.skipif(
    not native_fast_path.is_built(), reason="the fast path in C is not built: python hatch_build.py"
)
BOTH = pytest.mark.parametrize("rings", RINGS, ids=["stream", "rings"])
Row = npt.NDArray[np.float32]
NONE = RequestFlag.NONE


@pytest.fixture(scope="module", params=["lstm", "tcn"])
def served(request: pytest.FixtureRequest, models: ModelMaker) -> Iterator[Models]:
    with float_environment_kept():
        made = Models(models, "native", request.param)
    yield made
    for backend in made.whole:
        backend.close()


def rows(count: int, seed: int = 0) -> list[Row]:
    return list(np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32))


def fill(client: Client, instrument: int, steps: list[Row]) -> None:
    answers = [client.ask([(Step(instrument, flags=STORE_ONLY), row)])[0] for row in steps]
    assert {answer.status for answer in answers} == {Status.STORED}


def refuse_batch_path(patch: pytest.MonkeyPatch) -> None:
    def admitted(*_: object) -> None:
        raise AssertionError("a step went the batch path")

    patch.setattr(batcher_module, "admit_steps", admitted)


@BOTH
@pytest.mark.parametrize("together", [1, 5, 60])
def test_steps_of_warm_instruments_take_the_fast_path(
    served: Models, rings: bool, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(served, rings, in_flight_max=64, ring_slots=64)
    told = {instrument: rows(STEPS, instrument) for instrument in (1, 2)}
    for instrument, steps in told.items():
        fill(client, instrument, steps)
    refuse_batch_path(monkeypatch)
    for start in range(0, max(20, together), together):
        burst = []
        for number in range(start, start + together):
            instrument = 1 + number % 2
            told[instrument] = [*told[instrument], rows(1, number)[0]]
            burst.append((Step(instrument), told[instrument][-1]))
        answers = client.ask(burst)
        seen = {1: len(told[1]), 2: len(told[2])}
        for (step, _), answer in reversed(list(zip(burst, answers, strict=True))):
            newest = seen[step.instrument]
            seen[step.instrument] -= 1
            window = told[step.instrument][newest - STEPS : newest]
            assert (answer.status, answer.outputs) == (Status.OK, served.answer(0, window))
            assert answer.batch_rows == 1
    client.close()


@BOTH
@given(
    seed=st.integers(0, 2**32 - 1),
    advances=st.lists(st.sampled_from([0, 0, 1, 2, 30]), min_size=40, max_size=40),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answer_does_not_depend_on_what_was_advanced(
    served: Models, rings: bool, seed: int, advances: list[int]
) -> None:
    advance = NativeBackend.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeBackend, "advance", lambda self: False)
        client, draw = Client(served, rings), np.random.default_rng(seed)
        told: dict[int, list[Row]] = {1: [], 2: []}
        number, swapped = 0, int(draw.integers(0, len(advances)))
        for turn, count in enumerate(advances):
            if turn == swapped:
                number = 1
                client.swap(served.open(number))
            instrument, row = int(draw.integers(1, 3)), rows(1, int(draw.integers(0, 1000)))[0]
            reset = bool(draw.random() < 0.05)
            told[instrument] = [*([] if reset else told[instrument]), row]
            answer = client.ask([(Step(instrument, flags=RESET if reset else NONE), row)])[0]
            window = told[instrument][-STEPS:]
            if len(window) < STEPS:
                assert answer.status is Status.WARMING_UP
            else:
                assert answer.outputs == served.answer(number, window)
            backend = client.rig.batcher.backend
            assert isinstance(backend, NativeBackend)
            for _ in range(count):
                advance(backend)
        client.close()


@BOTH
@pytest.mark.parametrize("served", ["lstm"], indirect=True)
def test_work_that_an_answer_left_is_done_while_nothing_waits(
    served: Models, rings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(served, rings)
    fill(client, 1, rows(STEPS))
    refuse_batch_path(monkeypatch)
    backend = client.rig.batcher.backend
    assert isinstance(backend, NativeBackend)
    while backend.advance():
        pass
    wakes = client.rig.wakes
    with monkeypatch.context() as patch:
        patch.setattr(client.rig, "run", lambda: None)
        assert client.ask([(Step(1), rows(1)[0])])[0].status is Status.OK
    if not rings:
        assert client.rig.wakes > wakes, "a loop that sleeps would not do it"
        assert client.rig.batcher.poll()
    client.rig.run()
    assert not backend.advance()
    client.close()


class WithDeadlines(Client):
    """Each step has a deadline so much later than when it is made."""

    deadline_in_ns = 1 << 40

    def _frame(self, step: Step, row: Row) -> bytes:
        self._sent += 1
        deadline_ns = self.rig.clock() + self.deadline_in_ns
        return bytes(RequestOutbox(len(row)).encode_single(row, self._sent, 0, deadline_ns, step.instrument))


@BOTH
def test_step_that_expires_while_it_runs_is_stored_once(
    served: Models, rings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick(clock: FakeClock) -> int:
        clock.now_ns += 1
        return clock.now_ns

    client = WithDeadlines(served, rings)
    told = rows(STEPS)
    for row in told:
        client.ask([(Step(1), row)])
    monkeypatch.setattr(FakeClock, "__call__", tick)
    seen = []
    for client.deadline_in_ns in [*range(16), 1 << 40, *range(16), 1 << 40]:
        told.append(rows(1, len(told))[0])
        answer = client.ask([(Step(1), told[-1])])[0]
        seen.append(answer.status)
        if answer.status is Status.OK:
            assert answer.outputs == served.answer(0, told[-STEPS:])
    assert set(seen) == {Status.OK, Status.EXPIRED}
    client.close()


@pytest.fixture(scope="module")
def overflowing(models: ModelMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with answers past the largest float for some of its windows."""
    model = onnx.load(models.lstm(STEPS, FEATURES, outputs=2))
    (dense,) = [one for one in model.graph.initializer if one.name == "dense"]
    largest = np.sign(numpy_helper.to_array(dense)) * np.float32(3e38)
    dense.CopyFrom(numpy_helper.from_array(largest, "dense"))
    path = tmp_path_factory.mktemp("overflowing") / "overflowing.onnx"
    onnx.save(model, path)
    return path


@BOTH
def test_step_without_a_finite_answer_is_stored_once(overflowing: Path, rings: bool) -> None:
    made = Models.__new__(Models)
    made.name, made.paths = "native", [overflowing]
    made.whole = [made.open(0)]
    client, told = Client(made, rings), rows(STEPS)
    fill(client, 1, told)
    seen = set()
    for number in range(40):
        told.append(4 * rows(1, number)[0])
        answer = client.ask([(Step(1), told[-1])])[0]
        whole = made.answer(0, told[-STEPS:])
        seen.add(answer.status)
        assert answer.status is (Status.OK if np.isfinite(whole).all() else Status.MODEL_ERROR)
        if answer.status is Status.OK:
            assert answer.outputs == whole
    assert seen == {Status.OK, Status.MODEL_ERROR}
    client.close()
    made.whole[0].close()


@BOTH
def test_instrument_is_warm_from_the_step_that_is_answered(served: Models, rings: bool) -> None:
    client, steps = Client(served, rings), rows(STEPS)
    windows = client.session.history
    assert windows is not None
    statuses = [client.ask([(Step(1), row)])[0].status for row in steps]
    assert statuses == [Status.WARMING_UP] * (STEPS - 1) + [Status.OK]
    assert (windows.instruments, windows.warming_up) == (1, 0)
    client.ask([(Step(1, flags=RESET), steps[0])])
    assert windows.warming_up == 1
    client.close()


def test_client_that_lets_steps_be_overtaken_has_no_fast_path(served: Models) -> None:
    client = Client(served, rings=False, flags=HelloFlag.HISTORY | HelloFlag.CONFLATE)
    assert client.session.answers_steps
    assert client.session.fast_path is never
    client.close()


def test_session_beside_others_that_send_whole_windows_is_served(served: Models) -> None:
    client = Client(served, rings=False)
    other = client.rig.client()
    other.say(Hello(features=STEPS * FEATURES).encode())
    fill(client, 1, steps := rows(STEPS))
    for row in steps:
        assert client.ask([(Step(1), row)])[0].status is Status.OK
    client.close()
