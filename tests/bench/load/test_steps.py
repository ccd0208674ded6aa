"""The steps of a run with history: a cycle whose windows are known before it is sent."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.bench.errors import BadRequest
from sigd.bench.load.contract import LoadPlan
from sigd.bench.load.pacing import Pacer
from sigd.bench.load.steps import expected_answers, make_cycle
from sigd.models.history import Window
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.registry import open_backend
from sigd.wire.layout import REQUEST_INSTRUMENT_WORD
from sigd.wire.messages import Hello
from sigd.wire.status import HelloFlag

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


@given(
    connections=st.integers(1, 3),
    instruments=st.integers(1, 5),
    steps=st.integers(1, 40),
    axis=st.sampled_from([1, 2]),
)
def test_windows_are_those_of_the_steps_that_are_sent(
    connections: int, instruments: int, steps: int, axis: int
) -> None:
    cycle = make_cycle(2, steps, connections, instruments, seed=1)
    frames = cycle.frames()
    words = np.ascontiguousarray(frames).view(np.uint64)
    sent_to = words[:, REQUEST_INSTRUMENT_WORD].astype(np.uint32)
    windows = cycle.windows(Window(steps, 2, axis))
    kept: dict[tuple[int, int], deque[np.ndarray]] = defaultdict(lambda: deque(maxlen=steps))
    each = len(frames) // connections
    assert cycle.stored % each == 0, "the run begins where the cycle does"
    for number in range(cycle.stored + each):
        for connection in range(connections):
            row = (connection + number * connections) % len(frames)
            window = kept[connection, int(sent_to[row])]
            window.append(cycle.rows[row])
            if number >= cycle.stored:
                assert len(window) == steps
                whole = np.stack(window)
                assert np.array_equal(windows[row], (whole if axis == 1 else whole.T).reshape(-1))
    assert len(kept) == connections * instruments


@pytest.mark.parametrize("open_loop", [False, True])
def test_each_connection_sends_its_own_steps_in_turn(open_loop: bool) -> None:
    cycle = make_cycle(2, 3, connections=2, instruments=2, seed=1)
    intended = np.arange(-4, 20, dtype=np.int64) if open_loop else None
    plan = LoadPlan(
        *("", Hello(flags=HelloFlag.HISTORY), cycle.frames(), 1, intended),
        requests=100,
        connections=2,
        in_flight=3,
    )
    pacer = Pacer(plan, begin_ns=0)
    # One connection is answered sooner than the other.
    taken = [asked.frame for asked in pacer.take_due(0, 100)]
    for _ in range(3):
        pacer.answered(0)
    other = [asked.frame for asked in pacer.take_due(1, 100)]
    taken += [asked.frame for asked in pacer.take_due(0, 100)]
    assert taken == [0, 2, 4, 6, 8, 10]
    assert other == [1, 3, 5]


def test_expected_answers_are_the_models(models: ModelMaker) -> None:
    path = models.lstm(steps=5, features=4)
    cycle = make_cycle(4, 5, connections=1, instruments=3, seed=2)
    answers = expected_answers(cycle, path)
    backend = open_backend(path, "onnxruntime", 1, reading=ReadOptions(history=HistoryOptions()))
    for row in (0, 7, len(answers) - 1):
        backend.inputs[0] = cycle.windows(Window(5, 4))[row]
        backend.submit(1)
        np.testing.assert_allclose(answers[row], backend.outputs[0], rtol=1e-5, atol=1e-6)
    backend.close()


def test_model_without_a_window_is_refused(models: ModelMaker) -> None:
    with pytest.raises(BadRequest, match=r"expected \[batch, steps, features\] for history"):
        expected_answers(make_cycle(4, 5, 1, 1, seed=1), models.mlp(features=4))
