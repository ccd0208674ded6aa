"""Write a network as the ONNX file that is served, and check that two runtimes read it as we meant it.

    features [batch, 64] -> Gemm -> Relu -> Gemm -> Relu -> Gemm -> logits [batch, 3]

The file says nothing of when, where or on what it was made: the same weights give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from sigd.models.errors import ModelRefused
from sigd.models.features.catalogue import FEATURE_COUNT, FEATURE_NAMES, FEATURE_VERSION
from sigd.models.registry import open_backend
from sigd.models.training.network import Network
from sigd.models.training.outcome import CLASSES, Outcome
from sigd.models.training.samples import Float32Array

OPSET = 17
IR_VERSION = 8
"""Both long supported: ONNX Runtime 1.20 and TensorRT 10 read them."""

ERROR_MAX = 1e-3
"""How far a runtime's float32 logits may lie from ours in float64."""


def onnx_model(network: Network, outcome: Outcome, seed: int) -> ModelProto:
    """The ONNX model of a network for raw features; see `Network.folded`."""
    nodes, weights = [], []
    rows = "features"
    for number, layer in enumerate(network.layers, start=1):
        if number > 1:
            nodes.append(helper.make_node("Relu", [rows], [f"relu{number - 1}"], name=f"relu{number - 1}"))
            rows = f"relu{number - 1}"
        output = "logits" if number == len(network.layers) else f"dense{number}"
        inputs = [rows, f"weight{number}", f"bias{number}"]
        nodes.append(helper.make_node("Gemm", inputs, [output], name=f"gemm{number}"))
        weights.append(numpy_helper.from_array(layer.weight.astype(np.float32), f"weight{number}"))
        weights.append(numpy_helper.from_array(layer.bias.astype(np.float32), f"bias{number}"))
        rows = output
    graph = helper.make_graph(
        nodes,
        "lob-mlp",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURE_COUNT])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="sigd"
    )
    helper.set_model_props(model, _properties(outcome, seed))
    checker.check_model(model, full_check=True)
    return model


def _properties(outcome: Outcome, seed: int) -> dict[str, str]:
    return {
        "classes": ",".join(CLASSES),
        "feature_names": ",".join(FEATURE_NAMES),
        "feature_version": str(FEATURE_VERSION),
        "flat_bps": f"{outcome.flat_bps:g}",
        "horizon_ns": str(outcome.horizon_ns),
        "seed": str(seed),
    }


def write_model(model: ModelProto, path: Path) -> None:
    """Write the file, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(model.SerializeToString(deterministic=True))
    part.replace(path)


def check_model_file(path: Path, network: Network, features: Float32Array) -> float:
    """Run the file on the reference evaluator and on ONNX Runtime, and compare both with the network.

    Args:
        path: the ONNX file.
        network: what it was made from, for raw features.
        features: float32, shape (samples, 64).

    Returns:
        The largest difference of any logit.

    Raises:
        ModelRefused: a runtime does not serve it, or gives other answers.
    """
    expected = network.logits(features)
    worst = 0.0
    for name in ("oracle", "onnxruntime"):
        backend = open_backend(path, name, batch_rows_max=len(features))
        try:
            backend.inputs[:] = features
            backend.submit(len(features))
            error = float(np.abs(backend.outputs - expected).max())
        finally:
            backend.close()
        if not error <= ERROR_MAX:
            raise ModelRefused(
                f"{path}: {name} is off by {error:.3g} from the trained network, expected at most"
                f" {ERROR_MAX:g}"
            )
        worst = max(worst, error)
    return worst
