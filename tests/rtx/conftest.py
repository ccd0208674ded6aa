"""Tests of the real TensorRT-RTX builder, which builds for a GPU on a machine without one.

Elsewhere they are skipped, with the command that runs them. The models are small relatives of what is traded
with: each has a structure that builders have trouble with.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from sigd.models.zoo import default_model_path

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

Nodes = list[NodeProto]
Weights = list[TensorProto]


@pytest.fixture(autouse=True, scope="session")
def real_builder() -> None:
    """Skips without TensorRT-RTX."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs TensorRT-RTX (95 MB, no GPU): `make test-rtx` fetches it and runs this")


@pytest.fixture(scope="session")
def model_named(models: ModelMaker) -> Callable[[str], Path]:
    """The models of this suite: name -> path."""
    makers = {
        "lob-mlp": lambda _: default_model_path(),
        "lstm": lstm,
        "cnn-lstm": cnn_lstm,
        "attention": attention,
    }
    made: dict[str, Path] = {}

    def model_named(name: str) -> Path:
        if name not in made:
            made[name] = makers[name](models)
        return made[name]

    return model_named


class Draw:
    """Weights drawn from a seed, scaled so that values inside stay near 1."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def dense(self, name: str, *shape: int) -> TensorProto:
        fan_in = shape[0] if len(shape) < 4 else int(np.prod(shape[1:]))
        values = self._random.standard_normal(shape) / np.sqrt(fan_in)
        return numpy_helper.from_array(values.astype(np.float32), name)

    def gates(self, name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(self._random.uniform(-0.1, 0.1, (1, *shape)).astype(np.float32), name)


def integers(name: str, values: Sequence[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def recurrent(draw: Draw, steps: str, features: int, hidden: int) -> tuple[Nodes, Weights]:
    """An LSTM over `steps`, [time, N, features], and a dense layer on its last state: -> logits, [N, 3]."""
    nodes = [
        helper.make_node("LSTM", [steps, "w", "r", "b"], ["", "state"], hidden_size=hidden),
        helper.make_node("Squeeze", ["state", "first"], ["last"]),
        helper.make_node("Gemm", ["last", "dense", "bias"], ["logits"]),
    ]
    weights = [
        draw.gates("w", 4 * hidden, features),
        draw.gates("r", 4 * hidden, hidden),
        draw.gates("b", 8 * hidden),
        integers("first", [0]),
        draw.dense("dense", hidden, 3),
        draw.dense("bias", 3),
    ]
    return nodes, weights


def lstm(models: ModelMaker) -> Path:
    """50 steps of 32 features through 64 units: [N, 50, 32] -> [N, 3]."""
    nodes, weights = recurrent(Draw(1), "by_step", 32, 64)
    transpose = helper.make_node("Transpose", ["features"], ["by_step"], perm=[1, 0, 2])
    return models.graph([transpose, *nodes], ["N", 50, 32], ["N", 3], weights)


def cnn_lstm(models: ModelMaker) -> Path:
    """Convolutions over 100 snapshots of 10 levels (price and size of both sides) that join price with size,
    then bid
    with ask, then the levels, and an LSTM over what is left: [N, 100, 40] -> [N, 3]."""
    draw, channels = Draw(2), 16
    nodes: Nodes = [helper.make_node("Unsqueeze", ["features", "second"], ["image"])]
    weights: Weights = [integers("second", [1]), integers("fourth", [3])]
    layer, depth = "image", 1
    for number, (size, stride) in enumerate(
        [((1, 2), 2), ((4, 1), 1), ((1, 2), 2), ((4, 1), 1), ((1, 10), 1), ((4, 1), 1)]
    ):
        weights += [
            draw.dense(f"kernel{number}", channels, depth, *size),
            draw.dense(f"offset{number}", channels),
        ]
        inputs = [layer, f"kernel{number}", f"offset{number}"]
        layer, depth = f"active{number}", channels
        nodes += [
            helper.make_node("Conv", inputs, [f"convolved{number}"], strides=[1, stride]),
            helper.make_node("LeakyRelu", [f"convolved{number}"], [layer], alpha=0.01),
        ]
    nodes += [
        helper.make_node("Squeeze", [layer, "fourth"], ["sequence"]),
        helper.make_node("Transpose", ["sequence"], ["by_step"], perm=[2, 0, 1]),
    ]
    more_nodes, more_weights = recurrent(draw, "by_step", channels, 64)
    return models.graph([*nodes, *more_nodes], ["N", 100, 40], ["N", 3], [*weights, *more_weights])


def attention(models: ModelMaker) -> Path:
    """Layer normalisation, four heads of attention over 16 steps, a residual, a dense layer: [N, 16, 32] ->
    [N, 3]."""
    draw, steps, width, heads = Draw(3), 16, 32, 4
    weights: Weights = [
        numpy_helper.from_array(np.ones(width, np.float32), "gain"),
        numpy_helper.from_array(np.zeros(width, np.float32), "shift"),
        numpy_helper.from_array(np.array((width // heads) ** -0.5, np.float32), "scale"),
        integers("split", [0, steps, heads, width // heads]),
        integers("merge", [0, steps, width]),
    ]
    nodes: Nodes = [
        helper.make_node("LayerNormalization", ["features", "gain", "shift"], ["normal"], axis=-1)
    ]
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        weights.append(draw.dense(f"{name}_weights", width, width))
        nodes += [
            helper.make_node("MatMul", ["normal", f"{name}_weights"], [f"{name}_flat"]),
            helper.make_node("Reshape", [f"{name}_flat", "split"], [f"{name}_split"]),
            helper.make_node("Transpose", [f"{name}_split"], [name], perm=order),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["seen"]),
        helper.make_node("Transpose", ["seen"], ["seen_by_step"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["seen_by_step", "merge"], ["merged"]),
        helper.make_node("Add", ["merged", "features"], ["sum"]),
        helper.make_node("Flatten", ["sum"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["logits"]),
    ]
    weights += [draw.dense("dense", steps * width, 3), draw.dense("bias", 3)]
    return models.graph(nodes, ["N", steps, width], ["N", 3], weights)
