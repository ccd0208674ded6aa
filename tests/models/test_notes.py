"""What is said of a model when it is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tests.models.onnx.test_flatten import FLOAT, MATMUL, value, write

from sigd.models.notes import notes
from sigd.models.spec import read_spec


def write_double_trees(folder: Path) -> Path:
    """x[0] <= 0.1 and x[1] <= 0.5, of which float32 has the second alone."""
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["d"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * 5,
        nodes_nodeids=list(range(5)),
        nodes_featureids=[0, 1, 0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"],
        nodes_values_as_tensor=numpy_helper.from_array(np.array([0.1, 0.5, 0, 0, 0]), "values"),
        nodes_truenodeids=[1, 3, 0, 0, 0],
        nodes_falsenodeids=[2, 4, 0, 0, 0],
        target_treeids=[0] * 3,
        target_nodeids=[2, 3, 4],
        target_ids=[0] * 3,
        target_weights_as_tensor=numpy_helper.from_array(np.array([1.0, 2.0, 3.0]), "weights"),
    )
    nodes = [node]
    inputs, outputs = [value("d", TensorProto.DOUBLE, ["N", 4])], [value("y", TensorProto.DOUBLE, ["N", 1])]
    return write(folder, nodes, inputs, outputs, weights=())


def test_thresholds_that_float32_does_not_have_are_told_with_what_to_do(tmp_path: Path) -> None:
    (note,) = notes(read_spec(write_double_trees(tmp_path)))
    assert note.is_warning
    assert note.text.startswith("1 of 2 thresholds are no float32")
    assert 'X = X.astype("float32")' in note.text


def test_a_batch_fixed_to_one_is_told_with_the_line_that_frees_it(tmp_path: Path) -> None:
    path = write(tmp_path, [MATMUL], [value("x", FLOAT, [1, 4])], [value("y", FLOAT, [1, 3])])
    (note,) = notes(read_spec(path))
    assert note.is_warning
    assert "runs one row a call" in note.text
    assert 'dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}' in note.text
    free = write(tmp_path, [MATMUL], [value("x", FLOAT, ["N", 4])], [value("y", FLOAT, ["N", 3])])
    assert notes(read_spec(free)) == ()
