"""One contract, every backend: what `sigd.models.backend.Backend` promises, each promise on each backend.

Answers are compared in two ways. In one bucket and at one position a row's answer is the same to the bit,
whatever its neighbours are. Between buckets, positions and backends the order of a sum may differ: the models
here add up at most some hundred products of size 1 or below, which rounding moves by less than `TOLERANCE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sigd.models.backend import buckets
from sigd.models.errors import BackendClosed, BackendFailed, ModelRefused
from sigd.models.registry import BackendOptions, backend_names, make_backend, open_backend

if TYPE_CHECKING:
    from tests.conformance.conftest import Answers, Float32Array, OpenBackend, Served
    from tests.conftest import ModelMaker

TOLERANCE = 1e-5
"""Of float32: 256 terms of size 1, each rounded by 6e-8 at most, in either order."""

MODELS = ("mlp", "conv", "lstm", "doubled", "copied", "summed", "failing")
ROWS = 12
"""Not a power of two, so that the largest bucket is one of its own."""


def drawn(rows: int, features: int, seed: int = 0) -> Float32Array:
    """Rows within [0, 1): they suit every model of `MODELS`."""
    return np.random.default_rng(seed).random((rows, features), np.float32)


def assert_close(actual: Float32Array, expected: Float32Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_suite_covers_every_backend(covered_backends: set[str]) -> None:
    assert covered_backends == set(backend_names()) - {"auto"}


@pytest.mark.parametrize("model", MODELS)
def test_arrays_have_the_shape_of_the_model(open_model: OpenBackend, models: ModelMaker, model: str) -> None:
    backend = open_model(getattr(models, model)())
    assert backend.batch_rows_max == ROWS
    for array, columns in ((backend.inputs, backend.spec.features), (backend.outputs, backend.spec.outputs)):
        assert array.shape == (ROWS, columns)
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable
    assert {backend.inputs.data.format, backend.outputs.data.format} == {"f"}, (
        "single values can be read at C speed"
    )


def test_it_goes_by_its_name(open_model: OpenBackend, models: ModelMaker, backend_name: str) -> None:
    assert open_model(models.mlp()).name == backend_name


@pytest.mark.usefixtures("runs_the_model")
@pytest.mark.parametrize("model", MODELS)
def test_every_number_of_rows_agrees_with_the_oracle(
    open_model: OpenBackend, answers: Answers, models: ModelMaker, model: str
) -> None:
    path = getattr(models, model)()
    backend, oracle = open_model(path), open_model(path, backend="oracle")
    for rows in range(1, ROWS + 1):
        features = drawn(rows, backend.spec.features, seed=rows)
        assert_close(answers(backend, features), answers(oracle, features))


@pytest.mark.usefixtures("runs_the_model")
@pytest.mark.parametrize("rows", [1, 5])
def test_a_fixed_batch_is_served_whole(
    open_model: OpenBackend, answers: Answers, models: ModelMaker, rows: int
) -> None:
    path = models.mlp(batch=5)
    backend, free = open_model(path), open_model(models.mlp(), backend="oracle")
    assert backend.batch_rows_max == 5
    assert backend.inputs.shape[0] == 5
    features = drawn(rows, backend.spec.features)
    assert_close(answers(backend, features), answers(free, features))


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_does_not_depend_on_the_batch(
    open_model: OpenBackend, answers: Answers, models: ModelMaker, model: str
) -> None:
    """Alone, at any position, in any bucket."""
    backend = open_model(getattr(models, model)())
    features = drawn(ROWS, backend.spec.features)
    alone = np.concatenate([answers(backend, row[np.newaxis]) for row in features])
    for size in buckets(ROWS):
        for first in range(ROWS - size + 1):
            assert_close(answers(backend, features[first : first + size]), alone[first : first + size])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kept", [0, 4, ROWS - 1])
def test_other_neighbours_leave_an_answer_the_same_to_the_bit(
    open_model: OpenBackend, answers: Answers, models: ModelMaker, model: str, kept: int
) -> None:
    backend = open_model(getattr(models, model)())
    features, others = (drawn(ROWS, backend.spec.features, seed) for seed in (1, 2))
    others[kept] = features[kept]
    assert answers(backend, others)[kept].tobytes() == answers(backend, features)[kept].tobytes()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_a_row_that_is_not_finite_leaves_the_others_alone(
    open_model: OpenBackend, answers: Answers, models: ModelMaker, poison: float
) -> None:
    for path in (models.mlp(), models.conv(), models.lstm()):
        backend = open_model(path)
        features = drawn(ROWS, backend.spec.features)
        clean = answers(backend, features)
        poisoned = features.copy()
        poisoned[3] = poison
        others = np.arange(ROWS) != 3
        assert answers(backend, poisoned)[others].tobytes() == clean[others].tobytes()
        assert answers(backend, features).tobytes() == clean.tobytes()


def test_rows_left_from_before_do_not_leak(
    open_model: OpenBackend, answers: Answers, models: ModelMaker
) -> None:
    backend = open_model(models.mlp())
    features = drawn(ROWS, backend.spec.features)
    expected = {rows: answers(backend, features[:rows]) for rows in range(1, ROWS + 1)}
    for rows in range(1, ROWS + 1):
        backend.inputs[:] = np.nan
        backend.outputs[:] = np.nan
        assert answers(backend, features[:rows]).tobytes() == expected[rows].tobytes()


@pytest.mark.usefixtures("runs_the_model")
def test_the_arrays_are_never_replaced(open_model: OpenBackend, answers: Answers, models: ModelMaker) -> None:
    """A view taken once stays good: it is written through and read through."""
    backend = open_model(models.doubled())
    inputs, outputs = backend.inputs, backend.outputs
    first_input, first_output = inputs[0], outputs[0]
    for rows in (ROWS, 1, 3, 1, ROWS):
        first_input[:] = rows
        backend.submit(rows)
        while not backend.ready():
            pass
        assert backend.inputs is inputs
        assert backend.outputs is outputs
        assert first_output.tolist() == [2.0 * rows] * 4


@pytest.mark.usefixtures("runs_the_model")
@given(
    features=st.integers(1, 20),
    hidden=st.lists(st.integers(1, 24), max_size=3),
    outputs=st.integers(1, 6),
    batch_rows_max=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_small_network_agrees_with_the_oracle(
    open_model: OpenBackend,
    answers: Answers,
    models: ModelMaker,
    features: int,
    hidden: list[int],
    outputs: int,
    batch_rows_max: int,
    seed: int,
) -> None:
    path = models.mlp(features, hidden, outputs, seed)
    try:
        backend = open_model(path, batch_rows_max)
    except ModelRefused as refusal:
        # A narrow layer whose ReLUs are all dead.
        assume("one answer to" not in str(refusal))
        raise
    oracle = open_model(path, batch_rows_max, backend="oracle")
    for rows in range(1, batch_rows_max + 1):
        batch = drawn(rows, features, seed)
        assert_close(answers(backend, batch), answers(oracle, batch))
    path.unlink()


@pytest.mark.usefixtures("runs_the_model")
@given(steps=st.integers(1, 6), channels=st.integers(1, 5), rows=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_window_of_steps_agrees_with_the_oracle(
    open_model: OpenBackend,
    answers: Answers,
    models: ModelMaker,
    steps: int,
    channels: int,
    rows: int,
    seed: int,
) -> None:
    for path in (models.conv(channels, steps, seed=seed), models.lstm(steps, channels, seed=seed)):
        backend, oracle = open_model(path, rows), open_model(path, rows, backend="oracle")
        batch = drawn(rows, steps * channels, seed)
        assert_close(answers(backend, batch), answers(oracle, batch))
        path.unlink()


@pytest.mark.usefixtures("runs_the_model")
@pytest.mark.parametrize("rows", [1, 2, ROWS])
def test_denormal_features_count_as_zero(
    open_model: OpenBackend, answers: Answers, models: ModelMaker, rows: int
) -> None:
    backend = open_model(models.scaled(2.0**100))
    bits = np.random.default_rng(0).integers(1, 2**23, (rows, 4), np.uint32)
    denormals = bits.view(np.float32)
    assert answers(backend, denormals).tolist() == [[0.0] * 4] * rows
    assert answers(backend, -denormals).tolist() == [[0.0] * 4] * rows
    smallest_normal = np.full((rows, 4), 2.0**-126, np.float32)
    assert answers(backend, smallest_normal).tolist() == [[2.0**-26] * 4] * rows


def test_the_bare_call_runs_the_same_batch(
    open_model: OpenBackend, answers: Answers, models: ModelMaker
) -> None:
    backend = open_model(models.mlp())
    for rows in range(1, ROWS + 1):
        features = drawn(rows, backend.spec.features)
        expected = answers(backend, features)
        backend.outputs[:] = np.nan
        backend.bare_call(rows)()
        assert backend.outputs[:rows].tobytes() == expected.tobytes()


def test_a_bare_call_outlives_its_backend(backend_name: str, served: Served, models: ModelMaker) -> None:
    backend = open_backend(served(models.doubled(), 1), backend_name, batch_rows_max=1)
    backend.inputs[0] = 3.0
    call, outputs = backend.bare_call(1), backend.outputs
    call()
    expected = outputs[0].tolist()
    assert expected != [0.0] * 4
    outputs[:] = 0.0
    del backend
    call()
    assert outputs[0].tolist() == expected


@pytest.mark.parametrize("rows", [0, -1, ROWS + 1])
def test_a_batch_out_of_range_is_refused(
    open_model: OpenBackend, answers: Answers, models: ModelMaker, rows: int
) -> None:
    backend = open_model(models.doubled())
    one = np.ones((1, 4), np.float32)
    expected = answers(backend, one)
    for call in (backend.submit, backend.bare_call):
        with pytest.raises(ValueError, match=f"a batch of {rows} rows, expected 1 to {ROWS}"):
            call(rows)
    assert answers(backend, one).tolist() == expected.tolist() != [[0.0] * 4]


def test_a_batch_that_fails_says_why_and_the_next_one_runs(
    checked_backend_name: str, open_model: OpenBackend, answers: Answers, models: ModelMaker
) -> None:
    backend = open_model(models.failing(entries=4, outputs=2), backend=checked_backend_name)
    good = np.array([[3, 0, 0, 0]], np.float32)
    for rows in (1, 3):
        bad = np.zeros((rows, 4), np.float32)
        bad[-1, 0] = 9.0
        with pytest.raises(
            BackendFailed, match=rf"model-\d+\.onnx: .* on a batch of {rows} rows: .+"
        ) as failure:
            answers(backend, bad)
        assert not isinstance(failure.value, BackendClosed)
        assert not failure.value.fatal
        assert answers(backend, good).tolist() == [[6.0, 7.0]]


def test_nothing_runs_before_open(backend_name: str, served: Served, models: ModelMaker) -> None:
    backend = make_backend(served(models.mlp()), backend_name, BackendOptions(batch_rows_max=ROWS))
    for call in (lambda: backend.submit(1), backend.ready, lambda: backend.bare_call(1)):
        with pytest.raises(BackendClosed, match=r"call open\(\) first"):
            call()
    backend.close()


def test_nothing_runs_after_close_and_a_second_close_does_nothing(
    open_model: OpenBackend, models: ModelMaker
) -> None:
    backend = open_model(models.mlp())
    backend.submit(1)
    for _ in range(2):
        backend.close()
        for call in (lambda: backend.submit(1), backend.ready, lambda: backend.bare_call(1)):
            with pytest.raises(BackendClosed, match=r"nothing after close\(\)"):
                call()


@pytest.mark.usefixtures("runs_the_model")
def test_a_model_that_mixes_rows_is_refused(open_model: OpenBackend, models: ModelMaker) -> None:
    with pytest.raises(ModelRefused, match="changes with the other rows of its batch"):
        open_model(models.mixing())


@pytest.mark.usefixtures("runs_the_model")
def test_a_model_that_mixes_rows_is_served_one_row_at_a_time(
    open_model: OpenBackend, answers: Answers, models: ModelMaker
) -> None:
    backend = open_model(models.bounded_together(), batch_rows_max=1)
    assert answers(backend, np.ones((1, 4), np.float32)).tolist() == [[-99.0] * 4]


def test_a_file_that_changed_since_its_spec_was_read_is_refused(
    backend_name: str, served: Served, models: ModelMaker
) -> None:
    path, other = (served(models.mlp(seed=seed), 2) for seed in (101, 102))
    backend = make_backend(path, backend_name, BackendOptions(batch_rows_max=2))
    path.write_bytes(other.read_bytes())
    with pytest.raises(
        ModelRefused, match=r"has changed since its spec was read|not the engine that its manifest describes"
    ):
        backend.open()
