"""Networks of the zoo: dense layers, LSTM layers over a window, and DeepLOB."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sigd.models.zoo.draws import Draws, Float32Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_OPSET: Final = 17
_ML_OPSET: Final = 3
_IR_VERSION: Final = 8
"""All long supported: ONNX Runtime 1.20 and TensorRT 10 read them."""
INPUT: Final = "features"
_OUTPUT: Final = "answer"
_LAST_STATE: Final = 1
"""Which output of an LSTM node that is; its first one has the states of every step."""


class Graph:
    """A graph that grows node by node; every value is named for its node."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[NodeProto] = []
        self._weights: list[TensorProto] = []

    def node(self, operation: str, inputs: Sequence[str], output: int = 0, /, **more: Any) -> str:
        """Append a node of which one output is used, and give that output's name."""
        from onnx import helper

        name = f"{operation.lower()}{len(self._nodes)}"
        outputs = [""] * output + [name]
        self._nodes.append(helper.make_node(operation, list(inputs), outputs, name=name, **more))
        return name

    def weight(self, name: str, values: Float32Array | list[int]) -> str:
        """Append a constant: float32, or whole numbers for shapes and axes."""
        from onnx import numpy_helper

        array = np.array(values, np.int64) if isinstance(values, list) else values
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def model(self, row_dims: Sequence[int], outputs: int) -> ModelProto:
        """The model that answers what its last node gives: [batch, *row_dims] -> [batch, outputs]."""
        from onnx import TensorProto, checker, helper

        self._nodes[-1].output[0] = _OUTPUT
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *row_dims])],
            [helper.make_tensor_value_info(_OUTPUT, TensorProto.FLOAT, ["batch", outputs])],
            self._weights,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="sigd")
        checker.check_model(made)
        return made


def _dense(graph: Graph, draws: Draws, value: str, inputs: int, outputs: int, number: int) -> str:
    """A layer whose answers vary about as much as its inputs do."""
    weights = graph.weight(f"weight{number}", draws.uniform(sqrt(3 / inputs), inputs, outputs))
    bias = graph.weight(f"bias{number}", draws.uniform(0.1, outputs))
    return graph.node("Gemm", [value, weights, bias])


def mlp(sizes: Sequence[int], draws: Draws) -> ModelProto:
    """Dense layers with ReLU between them; `sizes` begins with the features."""
    graph = Graph("mlp")
    value = INPUT
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        if number:
            value = graph.node("Relu", [value])
        value = _dense(graph, draws, value, inputs, outputs, number)
    return graph.model([sizes[0]], sizes[-1])


def _recurrent_weights(graph: Graph, draws: Draws, number: int, inputs: int, hidden: int) -> list[str]:
    """Of one LSTM layer. ONNX has a bias for the inputs and one for the state: the second is zero, as in
    frameworks that fit one."""
    bound = 1 / sqrt(hidden)
    both = np.zeros((1, 8 * hidden), np.float32)
    both[:, : 4 * hidden] = draws.uniform(bound, 1, 4 * hidden)
    return [
        graph.weight(f"lstm_w{number}", draws.uniform(bound, 1, 4 * hidden, inputs)),
        graph.weight(f"lstm_r{number}", draws.uniform(bound, 1, 4 * hidden, hidden)),
        graph.weight(f"lstm_b{number}", both),
    ]


def lstm(steps: int, features: int, hidden: Sequence[int], draws: Draws) -> ModelProto:
    """LSTM layers over a window, the last state of the last one through a dense layer to one value."""
    graph = Graph("lstm")
    value = graph.node("Transpose", [INPUT], perm=[1, 0, 2])
    axis = {place: graph.weight(f"axis{place}", [place]) for place in (0, 1)}
    for number, (inputs, units) in enumerate(pairwise([features, *hidden])):
        weights = _recurrent_weights(graph, draws, number, inputs, units)
        if number + 1 < len(hidden):
            every = graph.node("LSTM", [value, *weights], hidden_size=units)
            value = graph.node("Squeeze", [every, axis[1]])
        else:
            last = graph.node("LSTM", [value, *weights], _LAST_STATE, hidden_size=units)
            value = graph.node("Squeeze", [last, axis[0]])
    _dense(graph, draws, value, hidden[-1], 1, 0)
    return graph.model([steps, features], 1)


_FILTERS: Final = 32
_BRANCH: Final = 64
_LEAK: Final = 0.01
_LEVELS: Final = 40
_BOOKS: Final = 100


class _Convolutions:
    """Convolutions with their activation; along time the answer is as long as what it was made from."""

    def __init__(self, graph: Graph, draws: Draws) -> None:
        self._graph = graph
        self._draws = draws
        self._made = 0

    def add(self, value: str, channels: int, filters: int, kernel: tuple[int, int], stride: int = 1) -> str:
        """Over `kernel` steps and values; `stride` is along the values of a book."""
        number, self._made = self._made, self._made + 1
        reach = kernel[0] - 1
        bound = sqrt(3 / (channels * kernel[0] * kernel[1]))
        weights = self._graph.weight(
            f"kernel{number}", self._draws.uniform(bound, filters, channels, *kernel)
        )
        bias = self._graph.weight(f"offset{number}", self._draws.uniform(0.1, filters))
        pads = [reach // 2, 0, reach - reach // 2, 0]
        made = self._graph.node("Conv", [value, weights, bias], pads=pads, strides=[1, stride])
        return self._graph.node("LeakyRelu", [made], alpha=_LEAK)


def deeplob(draws: Draws) -> ModelProto:
    """DeepLOB: 100 books of ten levels (price and size of either side), convolved down to one column, three
    branches over time, an LSTM, and the probabilities of three classes."""
    graph = Graph("deeplob")
    convolutions = _Convolutions(graph, draws)
    value = graph.node("Reshape", [INPUT, graph.weight("picture", [-1, 1, _BOOKS, _LEVELS])])
    for channels, width, stride in ((1, 2, 2), (_FILTERS, 2, 2), (_FILTERS, 10, 1)):
        value = convolutions.add(value, channels, _FILTERS, (1, width), stride)
        value = convolutions.add(value, _FILTERS, _FILTERS, (4, 1))
        value = convolutions.add(value, _FILTERS, _FILTERS, (4, 1))
    branches = []
    for reach in (3, 5):
        narrow = convolutions.add(value, _FILTERS, _BRANCH, (1, 1))
        branches.append(convolutions.add(narrow, _BRANCH, _BRANCH, (reach, 1)))
    pooled = graph.node("MaxPool", [value], kernel_shape=[3, 1], pads=[1, 0, 1, 0], strides=[1, 1])
    branches.append(convolutions.add(pooled, _FILTERS, _BRANCH, (1, 1)))
    joined = graph.node("Concat", branches, axis=1)
    flat = graph.node("Squeeze", [joined, graph.weight("axis3", [3])])
    by_step = graph.node("Transpose", [flat], perm=[2, 0, 1])
    weights = _recurrent_weights(graph, draws, 0, 3 * _BRANCH, _BRANCH)
    last = graph.node("LSTM", [by_step, *weights], _LAST_STATE, hidden_size=_BRANCH)
    state = graph.node("Squeeze", [last, graph.weight("axis0", [0])])
    graph.node("Softmax", [_dense(graph, draws, state, _BRANCH, 3, 0)], axis=-1)
    return graph.model([_BOOKS, _LEVELS], 3)
