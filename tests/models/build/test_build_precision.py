"""The graph in another precision: which tensors change, and that input and output stay float32."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sigd.models.build.precision import to_fp16, to_int8
from sigd.models.errors import ModelRefused
from sigd.models.manifest import RuntimeName
from sigd.models.rows import seeded_rows
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


def types_of_ends(model: onnx.ModelProto) -> set[int]:
    return {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}


def int8(path: Path, runtime: RuntimeName = "tensorrt-rtx", rows: int = 100) -> onnx.ModelProto:
    spec = read_spec(path)
    return to_int8(onnx.load(path), spec, seeded_rows(spec, rows, seed=0), "minmax", runtime)


@pytest.mark.parametrize("kind", ["mlp", "conv", "lstm"])
def test_fp16_changes_the_weights_and_not_the_ends(models: ModelMaker, kind: str) -> None:
    path = getattr(models, kind)()
    model = onnx.load(path)
    converted = to_fp16(model, path)
    assert types_of_ends(converted) == {TensorProto.FLOAT}
    kinds = {tensor.data_type for tensor in converted.graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    assert model == onnx.load(path)


@pytest.mark.parametrize("runtime", ["tensorrt-rtx", "onnxruntime"])
def test_int8_quantises_inputs_and_weights_of_dense_layers_only(
    models: ModelMaker, runtime: RuntimeName
) -> None:
    graph = int8(models.lstm(), runtime).graph
    quantised = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert [node.input[0] for node in quantised] == ["last"]
    assert types_of_ends(int8(models.mlp(), runtime)) == {TensorProto.FLOAT}


def test_int8_for_tensorrt_has_no_zero_point_and_float_biases(models: ModelMaker) -> None:
    graph = int8(models.mlp()).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    points = [tensors[node.input[2]] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)
    assert {tensors["b0"].dtype, tensors["b1"].dtype} == {np.dtype(np.float32)}


def test_int8_weights_have_a_range_for_each_channel(models: ModelMaker) -> None:
    graph = int8(models.mlp(hidden=(16,))).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    by_weight = {
        node.input[0]: tensors[node.input[1]].shape
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors
    }
    assert sorted(by_weight.values()) == [(3,), (16,)]


def test_int8_of_a_fixed_batch_calibrates_with_whole_batches(models: ModelMaker) -> None:
    assert int8(models.mlp(batch=8), rows=20)
    with pytest.raises(ModelRefused, match="7 rows to calibrate with, expected at least the 8 of one batch"):
        int8(models.mlp(batch=8), rows=7)


def test_int8_refuses_a_model_with_nothing_to_quantise(models: ModelMaker) -> None:
    with pytest.raises(ModelRefused, match="nothing of it can run in int8"):
        int8(models.doubled())


def test_int8_refuses_an_old_opset(models: ModelMaker) -> None:
    model = onnx.load(models.mlp())
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 11))
    path = models.new_path()
    onnx.save(model, path)
    with pytest.raises(ModelRefused, match="opset 11, int8 needs 13 or newer"):
        int8(path)


def test_int8_leaves_the_root_logger_as_it_was(models: ModelMaker) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.manager.disable)
    int8(models.mlp())
    assert (list(root.handlers), root.manager.disable) == before


def test_int8_refuses_rows_that_give_a_tensor_no_range(models: ModelMaker) -> None:
    path = models.mlp()
    spec = read_spec(path)
    with pytest.raises(ModelRefused, match=r"64 calibration rows give 'features' no range for int8 \(minmax"):
        to_int8(onnx.load(path), spec, np.zeros((64, 8), np.float32), "minmax", "onnxruntime")


def test_int8_refuses_a_layer_that_is_dead_on_the_rows(models: ModelMaker) -> None:
    nodes = [
        helper.make_node("MatMul", ["features", "w"], ["dense"]),
        helper.make_node("Add", ["dense", "low"], ["biased"]),
        helper.make_node("Relu", ["biased"], ["active"]),
        helper.make_node("MatMul", ["active", "w"], ["logits"]),
    ]
    weights = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"),
        numpy_helper.from_array(np.full(4, -50, np.float32), "low"),
    ]
    path = models.graph(nodes, ["N", 4], ["N", 4], weights)
    with pytest.raises(ModelRefused, match="give 'active' no range"):
        int8(path, "onnxruntime")


def test_int8_takes_a_range_of_255_for_what_it_is(models: ModelMaker) -> None:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    path = models.graph(
        [helper.make_node("MatMul", ["features", "w"], ["logits"])], ["N", 4], ["N", 4], [weight]
    )
    whole = np.arange(256, dtype=np.float32).repeat(4).reshape(-1, 4)
    assert to_int8(onnx.load(path), read_spec(path), whole, "minmax", "onnxruntime")


def test_fp16_refuses_weights_that_would_be_cut_off(models: ModelMaker) -> None:
    weight = numpy_helper.from_array(np.diag(np.array([1e6, 2e5, 1, 1], np.float32)), "w")
    path = models.graph(
        [helper.make_node("MatMul", ["features", "w"], ["logits"])], ["N", 4], ["N", 4], [weight]
    )
    with pytest.raises(ModelRefused, match=r"2 of 16 values of 'w' lie beyond 65504, .* \(up to 1e\+06\)"):
        to_fp16(onnx.load(path), path)


@pytest.mark.parametrize("low", [-1e9, -np.inf, -np.finfo(np.float32).max])
def test_fp16_cuts_off_a_mask_or_a_bound(models: ModelMaker, low: float) -> None:
    mask = numpy_helper.from_array(np.array(low, np.float32), "mask")
    path = models.graph(
        [helper.make_node("Max", ["features", "mask"], ["logits"])], ["N", 4], ["N", 4], [mask]
    )
    assert to_fp16(onnx.load(path), path)
