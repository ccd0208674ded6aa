"""Models whose rows depend on each other, however they do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from sigd.models.errors import ModelRefused
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

node = helper.make_node
AXIS_0 = numpy_helper.from_array(np.array(0, np.int64), "axis0")
LAST_FIRST = numpy_helper.from_array(np.array([-1], np.int64), "last")

MIXING: dict[str, list[NodeProto]] = {
    "normalised over the batch": [node("Softmax", ["features"], ["logits"], axis=0)],
    "a running sum over the batch": [node("CumSum", ["features", "axis0"], ["logits"])],
    "a running sum from the end": [node("CumSum", ["features", "axis0"], ["logits"], reverse=1)],
    "one scale for the whole batch": [
        node("DynamicQuantizeLinear", ["features"], ["bytes", "scale", "zero"]),
        node("DequantizeLinear", ["bytes", "scale", "zero"], ["logits"]),
    ],
    "the last row added to each": [
        node("Gather", ["features", "last"], ["last_row"], axis=0),
        node("Add", ["features", "last_row"], ["logits"]),
    ],
    "noise": [
        node("RandomNormalLike", ["features"], ["noise"]),
        node("Add", ["features", "noise"], ["logits"]),
    ],
}


@pytest.mark.parametrize("how", MIXING)
def test_rows_that_depend_on_each_other_are_found(models: ModelMaker, how: str) -> None:
    path = models.graph(MIXING[how], ["N", 4], ["N", 4], [AXIS_0, LAST_FIRST])
    with pytest.raises(ModelRefused, match=r"answer for a row changes .*batch_rows_max 1"):
        open_backend(path, batch_rows_max=4)


def test_rows_that_do_not_are_left_alone(models: ModelMaker) -> None:
    tokens = [
        node("Cast", ["features"], ["entry"], to=TensorProto.INT64),
        node("Gather", ["table", "entry"], ["chosen"]),
        node("ReduceSum", ["chosen", "row"], ["logits"], keepdims=0),
    ]
    table = numpy_helper.from_array(np.array([1.0], np.float32), "table")
    row = numpy_helper.from_array(np.array([1], np.int64), "row")
    paths = [
        models.mlp(),
        models.conv(),
        models.lstm(),
        models.copied(),
        models.summed(),
        models.failing(),
        models.graph(tokens, ["N", 4], ["N"], [table, row]),
        models.mlp(batch=4),
    ]
    for path in paths:
        backend = open_backend(path)
        assert not backend.inputs.any()
        assert not backend.outputs.any()


def test_one_row_has_no_neighbours(models: ModelMaker) -> None:
    assert open_backend(models.mixing(), batch_rows_max=1).batch_rows_max == 1
