"""What is particular to the oracle: truth by the standard's text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from sigd.models.errors import ModelRefused
from sigd.models.oracle import OracleBackend
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


def test_it_agrees_with_arithmetic_done_by_hand(models: ModelMaker) -> None:
    oracle = OracleBackend(read_spec(models.summed()), batch_rows_max=2)
    oracle.open()
    oracle.inputs[:] = [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.5, 0.25, 0.0]]
    assert oracle.submit(2)
    assert oracle.outputs.tolist() == [[10.0], [-0.25]]


def test_it_runs_the_rows_asked_for_and_no_others(models: ModelMaker) -> None:
    oracle = OracleBackend(read_spec(models.doubled()), batch_rows_max=4)
    oracle.open()
    oracle.inputs[:] = 1.0
    oracle.outputs[:] = -1.0
    oracle.submit(3)
    assert oracle.outputs[:, 0].tolist() == [2.0, 2.0, 2.0, -1.0]


def test_denormal_features_are_zero_without_the_processors_help(models: ModelMaker) -> None:
    oracle = OracleBackend(read_spec(models.scaled(2.0**100)), batch_rows_max=1)
    oracle.open()
    oracle.inputs[0] = [1e-40, -1e-40, 2.0**-126, -(2.0**-126)]
    oracle.submit(1)
    assert oracle.outputs.tolist() == [[0.0, 0.0, 2.0**-26, -(2.0**-26)]]


def test_an_output_of_another_shape_than_stated_is_refused(models: ModelMaker) -> None:
    path = models.graph([helper.make_node("Relu", ["features"], ["logits"])], ["N", 4], ["N", 5])
    with pytest.raises(ModelRefused, match=r"answered float32 \(2, 4\), expected float32 \(2, 5\)"):
        OracleBackend(read_spec(path), batch_rows_max=2).open()


def test_not_a_number_goes_through_without_a_warning(models: ModelMaker) -> None:
    oracle = OracleBackend(read_spec(models.mlp()), batch_rows_max=1)
    oracle.open()
    oracle.inputs[:] = np.inf
    oracle.submit(1)
    assert not np.isfinite(oracle.outputs).any()
