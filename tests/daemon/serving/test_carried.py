"""Steps of a model that carries a state: every answer is, to the bit, what the model gives with the state of
the steps before it, and every stored step runs, in its order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.daemon.serving.test_steps import (
    FEATURES,
    GIVE_UP,
    IN_FLIGHT_MAX,
    INSTRUMENTS_MAX,
    RESET,
    RINGS,
    STORE_ONLY,
    Client,
    Step,
)

from sigd.models.denormals import float_environment_kept
from sigd.models.errors import BackendFailed
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.registry import open_backend
from sigd.wire.messages import Hello, Reject, Welcome
from sigd.wire.status import HelloFlag, RejectCode, RequestFlag, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

    from sigd.models.backend import Backend

WARM_UP_STEPS, HIDDEN = 2, 6
Float32Array = npt.NDArray[np.float32]
State = tuple[int, Float32Array, Float32Array]

STEP = st.builds(
    Step,
    st.integers(0, 4),
    st.sampled_from(["drawn"] * 8 + ["bad", "none", "huge"]),
    st.sampled_from([RequestFlag.NONE] * 8 + [RESET, STORE_ONLY, GIVE_UP]),
    st.sampled_from([False, False, False, True]),
)
BURSTS = st.lists(st.lists(STEP, max_size=IN_FLIGHT_MAX + 3) | st.just("reload"), max_size=12)


class Models:
    """Two models of one shape, the second with a larger state: each to serve, and once more to ask."""

    def __init__(self, maker: ModelMaker, batch_rows: int = 1) -> None:
        self.paths = [maker.carried(FEATURES, 2, seed, hidden) for seed, hidden in ((1, HIDDEN), (2, 10))]
        self.batch_rows = batch_rows
        self._hidden = (HIDDEN, 10)
        self._sessions = [
            onnxruntime.InferenceSession(path, _one_thread(), providers=["CPUExecutionProvider"])
            for path in self.paths
        ]

    def open(self, number: int) -> Backend:
        reading = ReadOptions(history=HistoryOptions(warm_up_steps=WARM_UP_STEPS))
        return open_backend(self.paths[number], "onnxruntime", self.batch_rows, reading=reading)

    def begin(self, number: int) -> State:
        hidden = self._hidden[number]
        return 0, np.zeros((1, hidden), np.float32), np.zeros((1, 2, hidden // 2), np.float32)

    def step(self, number: int, row: Float32Array, state: State) -> tuple[Float32Array, State]:
        """The answer, and the state after it."""
        count, h, c = state
        given = {"features": row[None], "h_in": h, "c_in": c}
        answer, h, c = self._sessions[number].run(["logits", "h_out", "c_out"], given)
        return answer[0], (count + 1, h, c)


def _one_thread() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


@pytest.fixture(scope="module")
def served(models: ModelMaker) -> Iterator[Models]:
    # Other modules' tests must not inherit that denormals are flushed.
    with float_environment_kept():
        yield Models(models)


@pytest.fixture(scope="module")
def batched(models: ModelMaker) -> Iterator[Models]:
    with float_environment_kept():
        yield Models(models, batch_rows=8)


class Reference:
    """What the contract says, one step after the other."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._model = 0
        self._states: dict[int, State] = {}

    def reload(self) -> None:
        self._model = 1 - self._model
        self._states = dict.fromkeys(self._states, self._models.begin(self._model))

    def answer(self, number: int, step: Step, row: Float32Array) -> tuple[Status, Float32Array | None]:
        if number >= IN_FLIGHT_MAX:
            return Status.BUSY, None
        if step.flags == GIVE_UP and step.values == "none":
            self._states.pop(step.instrument, None)
            return Status.STORED, None
        if step.values in ("bad", "none"):
            return Status.BAD_INPUT, None
        if step.instrument not in self._states and len(self._states) == INSTRUMENTS_MAX:
            return Status.BUSY, None
        new = self._models.begin(self._model)
        before = new if step.flags & RESET else self._states.get(step.instrument, new)
        answer, after = self._models.step(self._model, row, before)
        if not np.isfinite(answer).all():
            self._states[step.instrument] = new
            return Status.MODEL_ERROR, None
        self._states[step.instrument] = after
        if step.flags & STORE_ONLY:
            return Status.STORED, None
        if after[0] < WARM_UP_STEPS:
            return Status.WARMING_UP, None
        return (Status.EXPIRED, None) if step.late else (Status.OK, answer)


def with_rows(burst: list[Step], draw: np.random.Generator) -> list[tuple[Step, Float32Array]]:
    rows = draw.standard_normal((len(burst), FEATURES)).astype(np.float32)
    for step, row in zip(burst, rows, strict=True):
        if step.values == "huge":
            row[:] = 3e38
        elif step.values != "drawn":
            row[slice(None) if step.values == "none" else 1] = np.nan
    return list(zip(burst, rows, strict=True))


def check(served: Models, rings: bool, bursts: list[list[Step] | str], tolerance: float) -> None:
    client, reference = Client(served, rings), Reference(served)  # type: ignore[arg-type]
    draw, number = np.random.default_rng(7), 0
    for burst in bursts:
        if isinstance(burst, str):
            number = 1 - number
            client.swap(served.open(number))
            reference.reload()
            continue
        # A client with rings holds back what its ring has no room for.
        rows = with_rows(burst[: IN_FLIGHT_MAX if rings else None], draw)
        expected = [reference.answer(place, *one) for place, one in enumerate(rows)]
        answers = client.ask(rows)
        assert [answer.status for answer in answers] == [status for status, _ in expected]
        for answer, (status, outputs) in zip(answers, expected, strict=True):
            if outputs is None:
                assert np.isnan(answer.outputs).all()
            else:
                np.testing.assert_allclose(answer.outputs, outputs, rtol=tolerance, atol=tolerance)
            ran = status not in (Status.BUSY, Status.BAD_INPUT)
            assert ran or not answer.batch_rows
    client.close()


@pytest.mark.parametrize("rings", RINGS, ids=["stream", "rings"])
@given(bursts=BURSTS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_step_answers_with_the_state_that_the_steps_before_left(
    served: Models, rings: bool, bursts: list[list[Step] | str]
) -> None:
    check(served, rings, bursts, tolerance=0)


@given(bursts=BURSTS)
@settings(max_examples=40)
def test_batch_has_one_step_of_each_instrument(batched: Models, bursts: list[list[Step] | str]) -> None:
    # ONNX Runtime's last bits depend on the batch.
    check(batched, rings=False, bursts=bursts, tolerance=1e-5)


def test_instruments_run_together_and_steps_of_one_in_turn(batched: Models) -> None:
    client = Client(batched, rings=False)  # type: ignore[arg-type]
    row = np.ones(FEATURES, np.float32)
    answers = client.ask([(Step(instrument), row) for instrument in (0, 1, 2, 0, 1, 1)])
    assert [answer.batch_rows for answer in answers] == [3, 3, 3, 2, 2, 1]
    client.close()


def test_withheld_steps_tell_that_they_ran(served: Models) -> None:
    client = Client(served, rings=False)  # type: ignore[arg-type]
    row = np.ones(FEATURES, np.float32)
    (warming,) = client.ask([(Step(0), row)])
    (stored,) = client.ask([(Step(0, flags=STORE_ONLY), row)])
    assert [(one.status, one.batch_rows) for one in (warming, stored)] == [
        (Status.WARMING_UP, 1),
        (Status.STORED, 1),
    ]
    client.close()


def test_step_that_fails_costs_only_its_own_instrument_the_state(batched: Models) -> None:
    client, reference = Client(batched, rings=False), Reference(batched)  # type: ignore[arg-type]
    batcher = client.rig.batcher
    submit, bad = batcher._submit, np.float32(666)

    def fail(rows: int) -> bool:
        if (batcher.backend.inputs[:rows] == bad).any():
            raise BackendFailed("666 is not to be had")
        return submit(rows)

    batcher._submit = fail
    rows = np.random.default_rng(0).standard_normal((4, FEATURES)).astype(np.float32)
    for row in rows[:2]:
        client.ask([(Step(instrument), row) for instrument in range(3)])
        for instrument in range(3):
            reference.answer(0, Step(instrument), row)
    burst = [Step(0, flags=STORE_ONLY), Step(1), Step(2)]
    failing = np.full(FEATURES, bad)
    answers = client.ask(list(zip(burst, (rows[2], failing, rows[2]), strict=True)))
    assert [one.status for one in answers] == [Status.STORED, Status.MODEL_ERROR, Status.OK]
    for instrument in (0, 2):
        reference.answer(0, Step(instrument), rows[2])
    for answer, instrument in zip(
        client.ask([(one, rows[3]) for one in map(Step, range(3))]), range(3), strict=True
    ):
        if instrument == 1:
            assert answer.status is Status.WARMING_UP, "it begins anew"
        else:
            _, expected = reference.answer(0, Step(instrument), rows[3])
            assert expected is not None
            np.testing.assert_allclose(answer.outputs, expected, rtol=1e-5, atol=1e-5)
    client.close()


def hello(served: Models, **asked: Any) -> Any:
    client = Client(served, rings=False)  # type: ignore[arg-type]
    other = client.rig.client()
    other.say(Hello(**asked).encode())
    client.close()
    (answer,) = other.received()
    return answer


def test_welcome_is_of_steps_and_answers_without_the_state(served: Models) -> None:
    welcome = hello(served, flags=HelloFlag.HISTORY | HelloFlag.CONFLATE, features=FEATURES, outputs=2)
    assert isinstance(welcome, Welcome)
    assert (welcome.features, welcome.outputs) == (FEATURES, 2)
    assert welcome.flags == HelloFlag.HISTORY, "every step runs: none is conflated"
    assert (welcome.history_steps, welcome.history_instruments_max) == (0, INSTRUMENTS_MAX)


def test_client_that_does_not_ask_is_refused(served: Models) -> None:
    reject = hello(served)
    assert isinstance(reject, Reject)
    assert (reject.code, reject.reason) == (
        RejectCode.SHAPE_MISMATCH,
        "this model carries a state: ask for history",
    )
