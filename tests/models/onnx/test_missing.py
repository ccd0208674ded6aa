"""NaN as a missing value: which graphs say that they read it as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tests.models.onnx.test_flatten import FLOAT, W, value, write

from sigd.models.notes import notes
from sigd.models.reading import Missing, ReadOptions
from sigd.models.spec import read_spec


def tree(tracks: int, reads: str = "x") -> NodeProto:
    """x[0] <= 0.5 -> 1, else 2; NaN goes left where `tracks`."""
    return helper.make_node(
        "TreeEnsembleRegressor",
        [reads],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[tracks, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[1.0, 2.0],
    )


def write_tree(folder: Path, tracks: int = 1) -> Path:
    return write(
        folder, [tree(tracks)], [value("x", FLOAT, ["N", 4])], [value("y", FLOAT, ["N", 1])], weights=()
    )


SCALED = [
    helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0]),
    tree(1, "s"),
]
IMPUTED = [
    helper.make_node(
        "Imputer",
        ["x"],
        ["full"],
        domain="ai.onnx.ml",
        imputed_value_floats=[0.0],
        replaced_value_float=float("nan"),
    ),
    helper.make_node("MatMul", ["full", "w"], ["y"]),
]
MASKED = [
    helper.make_node("IsNaN", ["x"], ["missing"]),
    helper.make_node("Where", ["missing", "zero", "x"], ["full"]),
    helper.make_node("MatMul", ["full", "w"], ["y"]),
]
GUARDED = [
    helper.make_node("MatMul", ["x", "w"], ["z"]),
    helper.make_node("IsNaN", ["z"], ["overflow"]),
    helper.make_node("Where", ["overflow", "zero", "z"], ["y"]),
]
ZERO = numpy_helper.from_array(np.zeros(1, np.float32), "zero")


@pytest.mark.parametrize(
    ("nodes", "how"),
    [
        ([tree(1)], "trees that know missing values"),
        ([tree(0)], ""),
        (SCALED, "trees that know missing values"),
        (IMPUTED, "Imputer"),
        (MASKED, "IsNaN"),
        (GUARDED, ""),
    ],
    ids=["tree", "tree-without", "scaled-tree", "imputer", "mask", "guard"],
)
def test_the_graph_says_how_it_reads_missing_values(tmp_path: Path, nodes: list[NodeProto], how: str) -> None:
    width = 1 if nodes[-1].op_type.startswith("Tree") else 3
    path = write(
        tmp_path, nodes, [value("x", FLOAT, ["N", 4])], [value("y", FLOAT, ["N", width])], weights=(W, ZERO)
    )
    spec = read_spec(path)
    assert (spec.reads_missing, spec.takes_nan) == (how, bool(how))
    assert not read_spec(path, options=ReadOptions(missing=Missing.REFUSE)).takes_nan
    assert read_spec(path, options=ReadOptions(missing=Missing.NAN)).takes_nan


def test_it_is_told(tmp_path: Path) -> None:
    path = write_tree(tmp_path)
    assert "takes NaN for a missing value (trees" in notes(read_spec(path))[0].text
    refusing = read_spec(path, options=ReadOptions(missing=Missing.REFUSE))
    assert "answers NaN with BAD_INPUT, as configured" in notes(refusing)[0].text


def test_a_fixed_batch_is_warned_of(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write(tmp_path, nodes, [value("x", TensorProto.FLOAT, [1, 4])], [value("y", FLOAT, [1, 3])])
    (note,) = notes(read_spec(path))
    assert note.is_warning
    assert "its batch is fixed to 1" in note.text
