"""Layers of a graph and of a plan."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import onnx

from sigd.models.layers import Layer, onnx_layers, plan_layers

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


def test_the_nodes_of_a_graph_with_their_parameters(models: ModelMaker) -> None:
    layers = onnx_layers(onnx.load(models.mlp(features=8, hidden=(16,), outputs=3)))
    assert layers == (
        Layer(name="", operator="Gemm", outputs=("dense0",), parameters=8 * 16 + 16),
        Layer(name="", operator="Relu", outputs=("relu0",)),
        Layer(name="", operator="Gemm", outputs=("logits",), parameters=16 * 3 + 3),
    )


def test_an_operator_of_another_domain_says_so() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("FusedGemm", ["x"], ["y"], name="dense", domain="com.microsoft")], "g", [], []
    )
    (layer,) = onnx_layers(onnx.helper.make_model(graph))
    assert (layer.name, layer.operator) == ("dense", "com.microsoft.FusedGemm")


def test_the_steps_of_a_plan_come_by_name_or_with_details() -> None:
    told = {
        "Layers": ["a fused step", {"Name": "gemm", "LayerType": "gemm", "Outputs": [{"Name": "logits"}]}],
        "Bindings": ["features", "logits"],
    }
    inspector = SimpleNamespace(get_engine_information=lambda _format: json.dumps(told))
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)

    class Logger:
        Severity = SimpleNamespace(ERROR=1)

    trt: Any = SimpleNamespace(
        ILogger=Logger,
        LayerInformationFormat=SimpleNamespace(JSON=1),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
    )
    assert plan_layers(trt, b"plan") == (
        Layer(name="a fused step"),
        Layer(name="gemm", operator="gemm", outputs=("logits",)),
    )
