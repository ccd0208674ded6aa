"""States that a model carries: which tensors they are, and what is kept of each instrument."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.models.carried_state import CarriedStates, StatePair, answer_columns, carried_state
from sigd.models.errors import BackendFailed, ModelRefused
from sigd.models.history import NO_PLACE
from sigd.models.history_check import check_steps
from sigd.models.onnx.columns import Columns, side_by_side
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.registry import open_backend
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.conftest import ModelMaker

    from sigd.models.carried_state import CarriedState


def tensors(*named: tuple[str, tuple[int, ...]], dtype: str = "float32") -> tuple[Columns, ...]:
    return side_by_side([Columns(name, dtype, dims) for name, dims in named])


def found(
    inputs: tuple[Columns, ...], outputs: tuple[Columns, ...], named: Mapping[str, str] | None = None
) -> CarriedState | None:
    return carried_state("m", inputs, outputs, named or {}, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h_in", "h_out"),
        ("h0", "hn"),
        ("lstm.h_0", "lstm.h_n"),
        ("prev_state", "next_state"),
        ("state", "new_state"),
        ("past_key", "present_key"),
        ("hiddenIn", "hiddenOut"),
        ("state_1", "state_1_out"),
    ],
)
def test_pair_is_found_by_name_and_shape(before: str, after: str) -> None:
    state = found(tensors(("x", (3,)), (before, (2, 4))), tensors(("y", (1,)), (after, (2, 4))))
    assert state is not None
    assert state.pairs == (StatePair(before, after, (2, 4)),)
    assert (state.features, state.outputs, state.width, state.memory_bytes(10)) == (3, 1, 8, 320)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((("x", (3,)), ("h_in", (4,))), (("y", (1,)), ("h_out", (5,)))),
        ((("x", (3,)), ("h_in", (4,))), (("y", (1,)), ("c_out", (4,)))),
        ((("x", (3,)), ("h_in", (4,))), (("h_next", (4,)), ("h_out", (4,)))),
        ((("x", (3,)),), (("y", (3,)),)),
    ],
    ids=["another shape", "another name", "two that fit", "none"],
)
def test_what_may_be_no_pair_is_not_taken_for_one(
    inputs: tuple[tuple[str, tuple[int, ...]], ...], outputs: tuple[tuple[str, tuple[int, ...]], ...]
) -> None:
    assert found(tensors(*inputs), tensors(*outputs)) is None


def test_named_pairs_need_no_likeness() -> None:
    inputs, outputs = tensors(("x", (3,)), ("a", (4,))), tensors(("p", (1,)), ("q", (4,)))
    state = found(inputs, outputs, {"a": "q"})
    assert state is not None
    assert state.pairs == (StatePair("a", "q", (4,)),)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"b": "q"}, "states names the input 'b', expected one of x, a"),
        ({"a": "r"}, "states names the output 'r', expected one of p, q"),
        ({"a": "p"}, r"state 'a' is \[4\] and 'p' \[1\], expected one shape"),
        ({"a": "q", "x": "q"}, "states names an output twice"),
    ],
)
def test_named_pairs_that_do_not_fit_are_refused(named: dict[str, str], said: str) -> None:
    with pytest.raises(ModelRefused, match=said):
        found(tensors(("x", (3,)), ("a", (4,))), tensors(("p", (1,)), ("q", (4,))), named)


def test_state_that_float32_does_not_hold_is_refused() -> None:
    with pytest.raises(ModelRefused, match="state 'h_in' is float64"):
        found(
            tensors(("x", (3,)), ("h_in", (4,)), dtype="float64"),
            tensors(("y", (1,)), ("h_out", (4,)), dtype="float64"),
        )


def test_model_of_states_alone_is_refused() -> None:
    with pytest.raises(ModelRefused, match="all its inputs are states"):
        found(tensors(("h_in", (4,))), tensors(("y", (1,)), ("h_out", (4,))))


def test_answer_may_lie_apart_in_the_row() -> None:
    outputs = tensors(("y", (2,)), ("h_out", (4,)), ("z", (1,)))
    state = found(tensors(("x", (3,)), ("h_in", (4,))), outputs)
    assert state is not None
    assert np.arange(7)[answer_columns(state)].tolist() == [0, 1, 6]


def test_states_are_kept_apart_and_begin_with_zeros(models: ModelMaker) -> None:
    spec = read_spec(models.carried(), options=ReadOptions(history=HistoryOptions(warm_up_steps=2)))
    assert spec.state is not None
    states = CarriedStates(spec.state, 2)
    memory = states._states
    step, row = np.arange(1, 5, dtype=np.float32), np.empty(spec.features, np.float32)
    outputs = np.arange(100, 100 + spec.outputs, dtype=np.float32)
    place = states.begin(7)
    states.load(place, step, row)
    assert row.tolist() == [*[0] * 6, 1, 2, 3, 4, *[0] * 6], "h_in, features, c_in"
    states.keep(place, outputs)
    assert not states.is_warm(place)
    assert states.begin(7) == place
    assert states.is_warm(place)
    states.load(place, step, row)
    assert row.tolist() == [*range(108, 114), 1, 2, 3, 4, *range(100, 106)], "from c_out, logits, h_out"
    assert states.begin(8) != place
    assert states.begin(9) == NO_PLACE
    assert (states.instruments, states.warming_up) == (2, 1)
    states.lose(place)
    states.begin(7)
    states.load(place, step, row)
    assert not row[[0, -1]].any(), "a step that failed leaves no state"
    assert states._states is memory
    assert memory.nbytes == spec.state.memory_bytes(2)


def test_warm_up_steps_are_for_a_state(models: ModelMaker) -> None:
    options = ReadOptions(history=HistoryOptions(warm_up_steps=2))
    with pytest.raises(ModelRefused, match="carries no state that was found, and warm_up_steps is for one"):
        read_spec(models.lstm(), options=options)


def test_check_passes_where_instruments_do_not_meet(
    models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(
        models.carried(), "onnxruntime", batch_rows_max=2, reading=ReadOptions(history=HistoryOptions())
    )
    check_steps(backend)
    keep = CarriedStates.keep
    monkeypatch.setattr(CarriedStates, "keep", lambda self, _, outputs: keep(self, 0, outputs))
    with pytest.raises(BackendFailed, match="answers other bits where another instrument steps in between"):
        check_steps(backend)
    backend.close()
