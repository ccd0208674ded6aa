"""Models whose rows depend on each other, however they do it, and models that give one answer to every
row."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from sigd.models.errors import ModelRefused
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

node = helper.make_node


def _tensor(name: str, *values: float, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


AXIS_0 = numpy_helper.from_array(np.array(0, np.int64), "axis0")
LAST_FIRST = _tensor("last", -1, dtype=np.int64)
AXES_0 = _tensor("axes0", 0, dtype=np.int64)
LOW, HIGH = (
    numpy_helper.from_array(np.array(value, np.float32), name) for value, name in ((-5, "lo"), (5, "hi"))
)
MEAN = numpy_helper.from_array(np.array(100, np.float32), "hundred")
STATISTICS = [_tensor(name, *([float(name == "ones")] * 4)) for name in ("ones", "zeros")]
HELD = [AXIS_0, LAST_FIRST, AXES_0, LOW, HIGH, MEAN, *STATISTICS]

QUANTISED = [
    node("DynamicQuantizeLinear", ["scaled"], ["bytes", "scale", "zero"]),
    node("DequantizeLinear", ["bytes", "scale", "zero"], ["logits"]),
]
RIGHT_ALONE: dict[str, list[NodeProto]] = {
    "a running sum over the batch": [node("CumSum", ["features", "axis0"], ["logits"])],
    "a running sum from the end": [node("CumSum", ["features", "axis0"], ["logits"], reverse=1)],
    "one scale for the whole batch": [node("Identity", ["features"], ["scaled"]), *QUANTISED],
    "one scale for the whole batch, of clipped prices": [
        node("Sub", ["features", "hundred"], ["centred"]),
        node("Clip", ["centred", "lo", "hi"], ["scaled"]),
        *QUANTISED,
    ],
    "the last row added to each": [
        node("Gather", ["features", "last"], ["last_row"], axis=0),
        node("Add", ["features", "last_row"], ["logits"]),
    ],
    "a largest value that only large rows reach": [
        node("ReduceMax", ["features"], ["largest"], axes=[0], keepdims=1),
        node("Max", ["largest", "hundred"], ["bound"]),
        node("Sub", ["features", "bound"], ["logits"]),
    ],
}
NOTHING_ALONE: dict[str, list[NodeProto]] = {
    "normalised over the batch": [node("Softmax", ["features"], ["logits"], axis=0)],
    "normalised over the batch, counted from the end": [
        node("LogSoftmax", ["features"], ["logits"], axis=-2)
    ],
    "less the mean of the batch": [
        node("ReduceMean", ["features"], ["mean"], axes=[0], keepdims=1),
        node("Sub", ["features", "mean"], ["logits"]),
    ],
    "less the mean of the batch, which is the second axis": [
        node("Transpose", ["features"], ["turned"], perm=[1, 0]),
        node("ReduceMean", ["turned"], ["mean"], axes=[1], keepdims=1),
        node("Sub", ["turned", "mean"], ["less"]),
        node("Transpose", ["less"], ["logits"], perm=[1, 0]),
    ],
    "a normalisation in training mode": [
        node(
            "BatchNormalization",
            ["features", "ones", "zeros", "zeros", "ones"],
            ["logits", "running_mean", "running_variance"],
            training_mode=1,
        )
    ],
}


@pytest.mark.parametrize("how", RIGHT_ALONE)
def test_rows_that_depend_on_each_other_are_found(models: ModelMaker, how: str) -> None:
    path = models.graph(RIGHT_ALONE[how], ["N", 4], ["N", 4], HELD)
    with pytest.raises(ModelRefused, match=r"answer for a row changes .*batch_rows_max 1"):
        open_backend(path, batch_rows_max=4)
    assert open_backend(path, batch_rows_max=1).batch_rows_max == 1


@pytest.mark.parametrize("how", NOTHING_ALONE)
def test_one_row_a_batch_is_no_way_out_where_it_leaves_one_answer(models: ModelMaker, how: str) -> None:
    path = models.graph(NOTHING_ALONE[how], ["N", 4], ["N", 4], HELD)
    with pytest.raises(ModelRefused, match=r"answer for a row changes .*no way out"):
        open_backend(path, batch_rows_max=4)
    with pytest.raises(ModelRefused, match=r"inference mode"):
        open_backend(path, batch_rows_max=1)


def test_answers_by_chance_are_refused(models: ModelMaker) -> None:
    noise = [
        node("RandomNormalLike", ["features"], ["noise"]),
        node("Add", ["features", "noise"], ["logits"]),
    ]
    with pytest.raises(ModelRefused, match="differently from one run to the next"):
        open_backend(models.graph(noise, ["N", 4], ["N", 4]), batch_rows_max=4)


def test_a_fixed_batch_gets_no_advice_that_it_cannot_follow(models: ModelMaker) -> None:
    path = models.graph(RIGHT_ALONE["a running sum over the batch"], [4, 4], [4, 4], HELD)
    with pytest.raises(ModelRefused, match="free batch axis"):
        open_backend(path)


def test_rows_that_do_not_are_left_alone(models: ModelMaker) -> None:
    tokens = [
        node("Cast", ["features"], ["entry"], to=TensorProto.INT64),
        node("Gather", ["table", "entry"], ["chosen"]),
        node("ReduceSum", ["chosen", "row"], ["logits"], keepdims=0),
    ]
    attention = [
        node("Transpose", ["features"], ["by_step"], perm=[1, 0, 2]),
        node("Softmax", ["by_step"], ["weights"], axis=0),
        node("ReduceSum", ["weights", "axes0"], ["summed"], keepdims=0),
        node("Mul", ["summed", "hundred"], ["ones_100"]),
        node("ReduceMax", ["by_step"], ["largest"], axes=[0], keepdims=0),
        node("Add", ["largest", "ones_100"], ["logits"]),
    ]
    table = _tensor("table", 1.0, 2.0, 3.0, 4.0)
    row = _tensor("row", 1, dtype=np.int64)
    paths = [
        models.mlp(),
        models.conv(),
        models.lstm(),
        models.copied(),
        models.summed(),
        models.failing(),
        models.graph(tokens, ["N", 4], ["N"], [table, row]),
        models.graph(attention, ["N", 3, 4], ["N", 4], [AXES_0, MEAN]),
        models.mlp(batch=4),
    ]
    for path in paths:
        backend = open_backend(path)
        assert not backend.inputs.any()
        assert not backend.outputs.any()


def test_one_answer_for_every_row_is_refused(models: ModelMaker) -> None:
    nothing = [
        node("Mul", ["features", "none"], ["gone"]),
        node("Add", ["gone", "bias"], ["logits"]),
    ]
    path = models.graph(nothing, ["N", 4], ["N", 4], [_tensor("none", 0.0), _tensor("bias", 1, 2, 3, 4)])
    # Infinity times 0 is no number, but no row that is tried is infinite.
    for rows in (1, 8):
        with pytest.raises(ModelRefused, match=r"one answer to \d+ different rows \(1, 2, 3, 4\)"):
            open_backend(path, batch_rows_max=rows)


def test_one_answer_of_a_model_of_thresholds_is_warned_of(
    models: ModelMaker, caplog: pytest.LogCaptureFixture
) -> None:
    steps = [
        node("Greater", ["features", "bound"], ["above"]),
        node("Cast", ["above"], ["logits"], to=TensorProto.FLOAT),
    ]
    with caplog.at_level(logging.WARNING):
        open_backend(models.graph(steps, ["N", 4], ["N", 4], [_tensor("bound", 1e30)]))
    assert "one answer to" in caplog.text


def test_a_clip_that_few_rows_lie_within_is_no_constant(models: ModelMaker) -> None:
    far = [
        node("Sub", ["features", "centre"], ["centred"]),
        node("Clip", ["centred", "lo", "hi"], ["logits"]),
    ]
    open_backend(models.graph(far, ["N", 4], ["N", 4], [_tensor("centre", 1e9), LOW, HIGH]))


def test_no_number_at_all_is_warned_of(models: ModelMaker, caplog: pytest.LogCaptureFixture) -> None:
    nan = [
        node("Abs", ["features"], ["size"]),
        node("Neg", ["size"], ["below"]),
        node("Sub", ["below", "one"], ["less"]),
        node("Sqrt", ["less"], ["logits"]),
    ]
    with caplog.at_level(logging.WARNING):
        open_backend(models.graph(nan, ["N", 4], ["N", 4], [_tensor("one", 1.0)]))
    assert "NaN or infinity to all of" in caplog.text


def test_an_output_that_is_always_infinite_is_warned_of(
    models: ModelMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """A class that may not be chosen has the logit -inf: no such answer reaches a client."""
    mask = numpy_helper.from_array(np.array([0, 0, 0, -np.inf], np.float32), "mask")
    masked = models.graph([node("Add", ["features", "mask"], ["logits"])], ["N", 4], ["N", 4], [mask])
    with caplog.at_level(logging.WARNING):
        open_backend(masked).close()
    assert "logits[3] is -inf in all of" in caplog.text
    assert "every request will be answered MODEL_ERROR" in caplog.text
    assert "-1e9 instead of -inf" in caplog.text
