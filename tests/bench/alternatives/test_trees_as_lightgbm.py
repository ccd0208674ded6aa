"""Trees of an ONNX file as LightGBM writes them, evaluated here by the words of its format."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from sigd.bench.alternatives.trees import lightgbm_text
from sigd.models.zoo.draws import Draws
from sigd.models.zoo.networks import mlp
from sigd.models.zoo.trees import trees


def evaluated(text: str, row: npt.NDArray[np.float32]) -> float:
    """The sum of all trees for one row."""
    total = 0.0
    for block in text.split("Tree=")[1:]:
        lines = dict(line.split("=", 1) for line in block.splitlines()[1:] if "=" in line)
        columns = {
            name: lines[name].split() for name in ("split_feature", "threshold", "left_child", "right_child")
        }
        node = 0
        while node >= 0:
            left = row[int(columns["split_feature"][node])] <= float(columns["threshold"][node])
            node = int(columns["left_child" if left else "right_child"][node])
        total += float(lines["leaf_value"].split()[-1 - node])
    return total


def test_the_trees_answer_as_the_onnx_file_does() -> None:
    from onnx.reference import ReferenceEvaluator

    model = trees(6, 5, Draws(3))
    text = lightgbm_text(model)
    assert text is not None
    assert text.startswith("tree\nversion=v4\n")
    assert "max_feature_idx=5\n" in text
    rows = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)
    (answers,) = ReferenceEvaluator(model).run(None, {"features": rows})
    expected = np.asarray(answers)[:, 0]
    np.testing.assert_allclose([evaluated(text, row) for row in rows], expected, atol=1e-5)


def test_what_is_no_ensemble_of_trees_is_none() -> None:
    assert lightgbm_text(mlp([4, 8, 1], Draws(1))) is None


def test_trees_that_lightgbm_has_not_are_none() -> None:
    model = trees(3, 2, Draws(1))
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "aggregate_function":
            attribute.CopyFrom(onnx.helper.make_attribute("aggregate_function", "MIN"))
    assert lightgbm_text(model) is None
