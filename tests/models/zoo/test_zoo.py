"""The zoo: every model has the shape that the list says and the same bytes everywhere, and is served."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from sigd.models.errors import ModelRefused
from sigd.models.native.backend import kernels_are_built
from sigd.models.registry import open_backend
from sigd.models.zoo.catalogue import ZOO, zoo_file, zoo_model

DIGESTS = {
    "lstm_a": "bdf56297f950778f111dfd86b1df917154862188ab503648ff989bc090574f8c",
    "lstm_b": "a9be67d2493fdb91568e70e6dd3f81e6799a804f073620d181985f309b8b673a",
    "gbt_a": "0db23bf273829b51a7be930be997a5c8fa386e21f5d637409ee90c6898a01098",
    "gbt_b": "2e649cd2183e3e01dbeb881cb0240a4825705a35cfc7259ac654942394861489",
    "mlp_295k": "6d4ebbf5a213d87210f59669eb185391f7ba9f0a508cac511727b7ec5c1fdec9",
    "mlp_1m": "ed701a70d4627be170e85c487d2812ee1b21739b1f046d84284f988bbde1112d",
    "deeplob": "1b02b42be7054a1db3ddd286ca5de9287a67724f4630c2aea1f0da7d07baaed9",
}
"""Of the files of seed 1: another digest is another model, and its figures are not comparable."""
OPERATORS = {
    "lstm_a": {"LSTM": 2, "Gemm": 1},
    "lstm_b": {"LSTM": 3, "Gemm": 1},
    "gbt_a": {"TreeEnsembleRegressor": 1},
    "gbt_b": {"TreeEnsembleRegressor": 1},
    "mlp_295k": {"Gemm": 3, "Relu": 2},
    "mlp_1m": {"Gemm": 4, "Relu": 3},
    "deeplob": {"Conv": 14, "LeakyRelu": 14, "MaxPool": 1, "Concat": 1, "LSTM": 1, "Softmax": 1},
}
TREES = {"gbt_a": 250, "gbt_b": 1000}
SERVED = [(name, "onnxruntime") for name in sorted(set(ZOO) - {"lstm_b"})]
"""A window of lstm_b has 25,000 values, where a frame carries 16,373."""
SERVED += [(name, "native") for name, _ in SERVED if name != "deeplob"]

made = cache(zoo_file)


@pytest.fixture(params=sorted(ZOO))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fitted_parameters(model: onnx.ModelProto) -> int:
    """Float weights, without an LSTM's second bias, which is zero; of trees thresholds and leaves."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    count = sum(array.size for array in weights.values() if array.dtype == np.float32)
    for node in model.graph.node:
        if node.op_type == "LSTM":
            bias = weights[node.input[3]]
            half = bias.shape[1] // 2
            assert not bias[:, half:].any()
            count -= half
        if node.op_type == "TreeEnsembleRegressor":
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            count += attributes["nodes_modes"].count(b"BRANCH_LEQ") + len(attributes["target_weights"])
    return count


def test_model_is_what_the_list_says(name: str) -> None:
    model = onnx.load_model_from_string(made(name, 1))
    listed = zoo_model(name)
    (value,), (answer,) = model.graph.input, model.graph.output
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    assert dims == [0, *listed.row_dims]
    assert [dim.dim_value for dim in answer.type.tensor_type.shape.dim] == [0, listed.outputs]
    assert fitted_parameters(model) == listed.parameters
    assert OPERATORS[name].items() <= Counter(node.op_type for node in model.graph.node).items()


def test_bytes_are_the_same_everywhere(name: str) -> None:
    assert hashlib.sha256(made(name, 1)).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("name", ["lstm_a", "gbt_a", "deeplob"])
def test_another_seed_is_another_model(name: str) -> None:
    assert zoo_file(name, 2) != made(name, 1)
    assert zoo_file(name, 2) == zoo_file(name, 2)


def test_model_runs_in_onnx_runtime_and_every_row_counts(name: str) -> None:
    session = onnxruntime.InferenceSession(made(name, 1), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(0).standard_normal((8, *zoo_model(name).row_dims)).astype(np.float32)
    (answers,) = session.run(None, {"features": rows})
    assert answers.shape == (8, zoo_model(name).outputs)
    assert np.isfinite(answers).all()
    assert (np.ptp(answers, axis=0) > 1e-4).any()


@pytest.mark.parametrize(("name", "backend"), SERVED)
def test_model_is_served(tmp_path: Path, name: str, backend: str) -> None:
    if backend == "native" and not kernels_are_built():
        pytest.skip("the native kernels are not built")
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(made(name, 1))
    rows = np.random.default_rng(0).standard_normal((4, *zoo_model(name).row_dims)).astype(np.float32)
    opened = open_backend(path, backend, batch_rows_max=4)
    try:
        opened.inputs[:] = rows.reshape(4, -1)
        opened.submit(4)
        answers = opened.outputs.copy()
    finally:
        opened.close()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(answers, session.run(None, {"features": rows})[0], rtol=1e-4, atol=1e-5)


def test_every_leaf_can_be_reached() -> None:
    model = onnx.load_model_from_string(made("gbt_a", 1))
    (node,) = model.graph.node
    table = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    places = {
        key: i for i, key in enumerate(zip(table["nodes_treeids"], table["nodes_nodeids"], strict=True))
    }
    assert Counter(table["target_treeids"]) == dict.fromkeys(range(TREES["gbt_a"]), 31)
    reached = 0
    for tree in range(TREES["gbt_a"]):
        open_nodes: list[tuple[int, dict[int, tuple[float, float]]]] = [(0, {})]
        while open_nodes:
            number, bounds = open_nodes.pop()
            place = places[tree, number]
            if table["nodes_modes"][place] == b"LEAF":
                reached += 1
                continue
            feature, threshold = table["nodes_featureids"][place], table["nodes_values"][place]
            low, high = bounds.get(feature, (-np.inf, np.inf))
            assert low < threshold < high
            open_nodes.append((table["nodes_truenodeids"][place], {**bounds, feature: (low, threshold)}))
            open_nodes.append((table["nodes_falsenodeids"][place], {**bounds, feature: (threshold, high)}))
    assert reached == TREES["gbt_a"] * 31


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelRefused, match=r"'lstm-a', expected one of .*did you mean lstm_a\?"):
        zoo_file("lstm-a")
