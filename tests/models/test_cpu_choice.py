"""The CPU's backend for an ONNX file: the faster of two that give the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from sigd.models.cpu_choice import choose_cpu_backend
from sigd.models.denormals import float_environment_kept
from sigd.models.native.backend import kernels_are_built
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

pytestmark = pytest.mark.skipif(not kernels_are_built(), reason="needs the native kernels")


def stump(folder: Path, transform: str) -> Path:
    """One tree of two leaves: a feature above 0 or not."""
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["score"],
        domain="ai.onnx.ml",
        n_targets=1,
        post_transform=transform,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_values=[0.0, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[0, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[-1.5, 2.5],
    )
    graph = helper.make_graph(
        [node],
        "stump",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    path = folder / f"stump-{transform}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def chosen(path: Path) -> tuple[str, str]:
    """The backend, and why."""
    with float_environment_kept():
        choice = choose_cpu_backend(read_spec(path))
    return choice.backend, choice.why


def test_same_answers_are_measured(models: ModelMaker, tmp_path: Path) -> None:
    for path in (models.mlp(), stump(tmp_path, "NONE")):
        _, why = chosen(path)
        assert why.startswith("one row takes the native kernels ")


def test_other_answers_are_never_served_for_their_speed(tmp_path: Path) -> None:
    """ONNX Runtime leaves LOGISTIC out where there is one target, and the kernels follow the standard."""
    backend, why = chosen(stump(tmp_path, "LOGISTIC"))
    assert backend == "onnxruntime"
    assert why.startswith("the native kernels answer up to 1.6"), why
