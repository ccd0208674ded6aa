"""Errors between answers, and what an engine may differ by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sigd.models.accuracy import (
    UNDECIDED,
    allowed_error,
    check_golden,
    cosine,
    decisions,
    error_max,
    measure,
    relative_errors,
    run_rows,
    shown,
)
from sigd.models.backend import Float32Array
from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import BuildRequest
from sigd.models.engine import stage_engine
from sigd.models.errors import ModelRefused
from sigd.models.manifest import Accuracy, Manifest, PrecisionName
from sigd.models.onnx.columns import Columns, side_by_side
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


def rows(*values: list[float]) -> Float32Array:
    return np.array(values, np.float32)


def accuracy(max_abs: float) -> Accuracy:
    return Accuracy(measured_on="x", rows=1, max_abs=max_abs, max_rel=0.0, cosine=1.0, label_agreement=1.0)


def test_measured_figures_are_those_worked_out_by_hand() -> None:
    found = measure(rows([1.0, 2.0], [4.0, 3.0]), rows([1.0, 2.5], [3.0, 3.5]), "here")
    assert (found.measured_on, found.rows) == ("here", 2)
    assert found.max_abs == 1.0
    assert found.max_rel == pytest.approx(1 / 3)
    assert found.cosine == pytest.approx((1 + 5 + 12 + 10.5) / np.sqrt(30 * (1 + 6.25 + 9 + 12.25)))
    assert found.label_agreement == 0.5


def test_an_error_next_to_zero_counts_against_the_largest_answer() -> None:
    errors = relative_errors(rows([1e-9, 100.0]), rows([0.0, 100.0]))
    assert errors[0, 0] == pytest.approx(1e-8)
    assert errors[0, 1] == 0


def test_zeros_have_no_relative_error() -> None:
    assert not relative_errors(rows([0.0]), rows([0.0])).any()


@pytest.mark.parametrize(
    ("outputs", "decided"),
    [
        ([[1, 2, 3], [3, 2, 1], [1, 1, 0]], [2, 0, 0]),
        ([[0.5], [-0.5], [0.0], [3.0]], [1, -1, 0, 1]),
        ([[np.nan], [np.inf], [-np.inf]], [UNDECIDED, 1, -1]),
        ([[np.nan, 1.0], [1.0, -np.inf]], [UNDECIDED, 0]),
    ],
)
def test_what_an_answer_means(outputs: list[list[float]], decided: list[int]) -> None:
    assert decisions(rows(*outputs)).tolist() == decided


@pytest.mark.parametrize(
    ("left", "right", "expected"), [([0, 0], [0, 0], 1.0), ([0, 0], [1, 0], 0.0), ([1, 0], [-1, 0], -1.0)]
)
def test_cosine_of_the_edges(left: list[float], right: list[float], expected: float) -> None:
    assert cosine(rows(left), rows(right)) == expected


finite = arrays(np.float32, (5, 3), elements=st.floats(-1e6, 1e6, width=32))


@given(finite)
def test_what_is_equal_agrees_in_everything(outputs: Float32Array) -> None:
    found = measure(outputs, outputs, "itself")
    assert (found.max_abs, found.max_rel, found.label_agreement) == (0.0, 0.0, 1.0)
    assert found.cosine == pytest.approx(1.0)


def test_an_answer_that_is_not_finite_is_refused_unless_the_oracle_says_so_too() -> None:
    with pytest.raises(ModelRefused, match="on fp16: NaN or infinity in 1 of 2 rows"):
        measure(rows([np.nan, 0.0], [1.0, 1.0]), rows([1.0, 0.0], [1.0, 1.0]), "fp16")


def test_a_number_where_the_oracle_has_none_is_refused() -> None:
    with pytest.raises(
        ModelRefused, match="on fp16: a number in 1 of 2 rows in which the oracle is not finite"
    ):
        measure(rows([2.0, 0.0], [1.0, 1.0]), rows([np.inf, 0.0], [1.0, 1.0]), "fp16")


def test_what_is_infinite_on_both_sides_has_no_error() -> None:
    masked = rows([2.0, 1.0, -np.inf], [1.0, 3.0, -np.inf])
    found = measure(masked, masked, "itself")
    assert (found.max_abs, found.max_rel, found.label_agreement) == (0.0, 0.0, 1.0)
    assert found.cosine == pytest.approx(1.0)


def test_what_is_allowed_follows_from_what_was_measured() -> None:
    reference = rows([10.0, -20.0])
    assert allowed_error("int8", reference, accuracy(0.5), accuracy(9.0)) == pytest.approx(1.0 + 20e-4)
    assert allowed_error("fp16", reference, "not measured", accuracy(0.1)) == pytest.approx(0.2 + 0.2)
    assert allowed_error("fp32", reference, "not measured", "not measured") == pytest.approx(20e-4)


@pytest.mark.parametrize(
    ("precision", "share"), [("fp32", 1e-3), ("tf32", 2e-2), ("fp16", 5e-2), ("int8", 0.5)]
)
def test_what_is_allowed_has_a_bound_whatever_was_measured(precision: PrecisionName, share: float) -> None:
    reference = rows([10.0, -20.0], [-np.inf, 1.0])
    for measured in (accuracy(1e6), "not measured"):
        allowed = allowed_error(precision, reference, measured, accuracy(1e6))
        assert allowed == error_max(precision, reference) == pytest.approx(20 * share)


def test_more_rows_than_a_batch_run_in_turns(models: ModelMaker) -> None:
    backend = open_backend(models.doubled(), batch_rows_max=4)
    features = np.arange(44, dtype=np.float32).reshape(11, 4)
    np.testing.assert_array_equal(run_rows(backend, features), 2 * features)


def test_a_fixed_batch_runs_rows_that_do_not_fill_it(models: ModelMaker) -> None:
    backend = open_backend(models.doubled(batch=4))
    features = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.testing.assert_array_equal(run_rows(backend, features), 2 * features)


@pytest.fixture
def manifest(models: ModelMaker) -> Manifest:
    return build_engine(
        BuildRequest(model=models.mlp(), engine=models.folder / "golden.engine", runtime="onnxruntime")
    )


def test_an_engine_that_answers_otherwise_is_refused(models: ModelMaker, manifest: Manifest) -> None:
    same, other = open_backend(models.mlp()), open_backend(models.mlp(seed=1))
    assert check_golden(same, manifest) <= manifest.golden.max_abs_allowed
    with pytest.raises(
        ModelRefused, match=r"answers its golden rows with an error of \d.*, expected at most"
    ):
        check_golden(other, manifest)


def test_nan_is_never_within_what_is_allowed(models: ModelMaker, manifest: Manifest) -> None:
    nan = msgspec.structs.replace(
        manifest.golden, features=np.full((4, 8), np.nan, "<f4").tobytes(), max_abs_allowed=1e9
    )
    with pytest.raises(ModelRefused, match="an error of nan"):
        check_golden(open_backend(models.mlp()), msgspec.structs.replace(manifest, golden=nan))


def test_opening_an_engine_checks_its_golden_rows(models: ModelMaker, manifest: Manifest) -> None:
    engine = models.folder / "golden.engine"
    open_backend(engine)
    wrong = msgspec.structs.replace(manifest.golden, outputs=np.full((4, 3), 7.0, "<f4").tobytes())
    stage_engine(models.folder, engine, engine.read_bytes(), msgspec.structs.replace(manifest, golden=wrong))
    with pytest.raises(ModelRefused, match="answers its golden rows with an error"):
        open_backend(engine)


def test_it_is_shown_in_one_line() -> None:
    assert shown("not measured") == "not measured"
    assert "max abs 0.5" in shown(accuracy(0.5))


CLASSIFIER = side_by_side(
    [
        Columns("label", "string", (), labels=("down", "flat", "up"), text=True),
        Columns("probabilities", "float32", (3,), labels=("down", "flat", "up")),
    ]
)


def test_a_classifier_decides_by_its_label() -> None:
    found = rows([2, 0.3, 0.5, 0.2], [1, 0.6, 0.2, 0.2], [0, np.nan, 0.0, 0.0])
    assert decisions(found, CLASSIFIER).tolist() == [2, 1, 0]


def test_without_a_label_the_probabilities_decide() -> None:
    columns = side_by_side(
        [Columns("state", "float32", (2,)), Columns("p", "float32", (2,), labels=("no", "yes"))]
    )
    assert decisions(rows([9, 0, 0.2, 0.8], [9, 0, np.nan, 0.8]), columns).tolist() == [1, UNDECIDED]


def test_an_answer_of_several_outputs_is_decided_by_the_first() -> None:
    columns = side_by_side([Columns("y", "float32", (1,)), Columns("state", "float32", (3,))])
    assert decisions(rows([-2, 5, 6, 7], [3, 5, 6, 7]), columns).tolist() == [-1, 1]


def test_integers_alone_have_no_error_and_agree_where_all_are_equal() -> None:
    columns = side_by_side([Columns("label", "int64", ()), Columns("level", "int64", ())])
    found = measure(rows([1, 5], [2, 5], [0, 4], [1, 1]), rows([1, 5], [2, 6], [0, 4], [1, 1]), "x", columns)
    assert (found.max_abs, found.max_rel, found.label_agreement) == (0.0, 0.0, 0.75)
    assert shown(found, columns) == "integers, of which 75.00% of rows agree (4 rows, x)"


def test_a_label_that_tipped_over_is_no_error_but_a_disagreement() -> None:
    """It is a whole number away, however close the probabilities are."""
    outputs = rows([1, 0.3, 0.4, 0.3], [2, 0.1, 0.4, 0.5])
    reference = rows([0, 0.4, 0.3, 0.3], [2, 0.1, 0.4, 0.5])
    found = measure(outputs, reference, "here", CLASSIFIER)
    assert found.max_abs == pytest.approx(0.1, abs=1e-6)
    assert found.label_agreement == 0.5
