"""What the lowering claims, by operation and attribute, against ONNX Runtime; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.models.native.conftest import Array, Run, model_of, on_onnxruntime, plan_of

from sigd.models.native.lowering.graph import NotCovered
from sigd.models.native.lowering.trees import at_most, less_than
from sigd.models.native.plan import FLOAT_MAX

ML: Final = "ai.onnx.ml"
DRAW: Final = np.random.default_rng(18)
Model = onnx.ModelProto
ZEROS: Final = np.zeros((1, 5, 4), np.float32)


def floats(*shape: int) -> Array:
    """Weights of about 1."""
    return DRAW.standard_normal(shape).astype(np.float32)


def one(
    operation: str,
    features: Sequence[int],
    outputs: Sequence[int],
    *weights: Any,
    domain: str = "",
    before: int = 0,
    after: int = 0,
    opset: int = 20,
    **attributes: Any,
) -> Model:
    """A model of one operation, which reads the features and then constants (None: left out).

    Args:
        before, after: outputs of the operation that stand before and behind the one that is the answer.
    """
    named = {f"w{number}": array for number, array in enumerate(weights) if array is not None}
    inputs = [f"w{number}" if array is not None else "" for number, array in enumerate(weights)]
    answers = [*(f"before{n}" for n in range(before)), "answer", *(f"after{n}" for n in range(after))]
    node = helper.make_node(operation, ["features", *inputs], answers, domain=domain, **attributes)
    return model_of([node], features, outputs, named, opset=opset)


def chain(features: Sequence[int], outputs: Sequence[int], weights: dict[str, Array], *nodes: Any) -> Model:
    """A model of several operations: (operation, inputs, outputs, attributes) each."""
    made = [helper.make_node(name, list(i), list(o), **more) for name, i, o, more in nodes]
    return model_of(made, features, outputs, weights)


def recurrent(operation: str, answer: str, direction: str, **more: Any) -> Model:
    """An LSTM or GRU over 5 steps of 3, 4 hidden, between two transpositions.

    Args:
        answer: "Y", all states, or "Y_h", the last ones.
        more: attributes; `bias=False`, or one of the constant inputs by its name in ONNX.
    """
    gates, directions = (4, 3)[operation == "GRU"], 1 + (direction == "bidirectional")
    given = {"sequence_lens": more.pop("sequence_lens", None), "initial_h": more.pop("initial_h", None)}
    given |= {"initial_c": more.pop("initial_c", None), "P": more.pop("peepholes", None)}
    weights = {"W": floats(directions, gates * 4, 3), "R": floats(directions, gates * 4, 4)}
    if more.pop("bias", True):
        weights["B"] = floats(directions, 2 * gates * 4)
    weights |= {name: array for name, array in given.items() if array is not None}
    inputs = ["steps", "W", "R", *(name if name in weights else "" for name in ("B", *given))]
    while not inputs[-1]:
        inputs.pop()
    if operation == "GRU":
        more.setdefault("linear_before_reset", 1)
    outputs = {"Y": ["y"], "Y_h": ["", "y"], "Y_c": ["", "", "y"]}[answer]
    order = [2, 0, 1, 3] if answer == "Y" else [1, 0, 2]
    dims = [5, directions, 4] if answer == "Y" else [directions, 4]
    return chain(
        [5, 3], dims, weights,
        ("Transpose", ["features"], ["steps"], {"perm": [1, 0, 2]}),
        (operation, inputs, outputs, {"hidden_size": 4, "direction": direction, **more}),
        ("Transpose", ["y"], ["answer"], {"perm": order}),
    )  # fmt: skip


def linear(operation: str, outputs: int, **more: Any) -> Model:
    """A linear model of 6 features."""
    before = int(operation == "LinearClassifier")
    attributes: dict[str, Any] = {
        "coefficients": floats(6 * outputs).tolist(),
        "intercepts": floats(outputs).tolist(),
    }
    if before:
        attributes["classlabels_ints"] = list(range(max(outputs, 2)))
    else:
        attributes["targets"] = outputs
    return one(operation, [6], [outputs], domain=ML, before=before, **attributes, **more)


def trees(transform: str = "NONE", mode: str = "BRANCH_LEQ", **more: Any) -> Model:
    """Two trees of two leaves, with answers from 0.1 to 0.9 before the transform."""
    table: dict[str, Any] = {
        "nodes_treeids": [0, 0, 0, 1, 1, 1],
        "nodes_nodeids": [0, 1, 2, 0, 1, 2],
        "nodes_featureids": [1, 0, 0, 3, 0, 0],
        "nodes_values": [0.25, 0.0, 0.0, -0.5, 0.0, 0.0],
        "nodes_modes": [mode, "LEAF", "LEAF", mode, "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0, 1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0, 2, 0, 0],
        "nodes_hitrates": [1.0] * 6,
        "target_treeids": [0, 0, 1, 1],
        "target_nodeids": [1, 2, 1, 2],
        "target_ids": [0, 0, 0, 0],
        "target_weights": [0.1, 0.4, 0.05, 0.5],
    }
    more |= {"n_targets": 1, "post_transform": transform}
    return one("TreeEnsembleRegressor", [6], [1], domain=ML, **table, **more)


def two_classes(transform: str) -> Model:
    """Trees whose one sum speaks for the second of two classes."""
    table: dict[str, Any] = {
        "nodes_treeids": [0],
        "nodes_nodeids": [0],
        "nodes_featureids": [0],
        "nodes_values": [0.0],
        "nodes_modes": ["LEAF"],
        "nodes_truenodeids": [0],
        "nodes_falsenodeids": [0],
        "class_treeids": [0],
        "class_nodeids": [0],
        "class_ids": [0],
        "class_weights": [0.5],
        "classlabels_int64s": [0, 1],
    }
    return one("TreeEnsembleClassifier", [6], [2], domain=ML, before=1, post_transform=transform, **table)


def conv(
    kernel: int = 3, channels: int = 4, filters: int = 6, length: int = 11, bias: bool = True, **more: Any
) -> Model:
    """A convolution over 11 steps; the length of its answer by the formula of the standard."""
    groups = more.get("group", 1)
    reach = more.get("dilations", [1])[0] * (kernel - 1) + 1
    step = more.get("strides", [1])[0]
    room = length + sum(more.get("pads", [0, 0])) - reach
    positions = -(-length // step) if "auto_pad" in more else room // step + 1
    weights = floats(filters, channels // groups, kernel)
    return one(
        "Conv", [channels, length], [filters, positions], weights, floats(filters) if bias else None, **more
    )


def scaled(factor: float) -> Callable[[Array], Array]:
    """Rows of another size."""
    return lambda rows: rows * np.float32(factor)


def with_holes(rows: Array) -> Array:
    """Every third feature missing."""
    rows = rows.copy()
    rows.reshape(-1)[::3] = np.nan
    return rows


TAKEN: Final[dict[str, Model | tuple[Model, Callable[[Array], Array]]]] = {
    "Gemm": one("Gemm", [6], [5], floats(6, 5), floats(5), alpha=0.5, beta=2.0),
    "Gemm, transposed, without bias": one("Gemm", [6], [5], floats(5, 6), transB=1),
    "Gemm, bias of one number": one("Gemm", [6], [5], floats(6, 5), floats(1)),
    "MatMul": one("MatMul", [6], [5], floats(6, 5)),
    "MatMul on steps": one("MatMul", [3, 6], [3, 5], floats(6, 5)),
    "MatMul, Add, BatchNormalization, Relu": chain(
        [6], [5],
        {"w": floats(6, 5), "v": floats(5) ** 2, **{name: floats(5) for name in ("b", "s", "c", "m")}},
        ("MatMul", ["features", "w"], ["x"], {}), ("Add", ["b", "x"], ["y"], {}),
        ("BatchNormalization", ["y", "s", "c", "m", "v"], ["z"], {}), ("Relu", ["z"], ["answer"], {}),
    ),
    "BatchNormalization on channels": one(
        "BatchNormalization", [4, 7], [4, 7], floats(4), floats(4), floats(4), floats(4) ** 2, epsilon=1e-3
    ),
    "LayerNormalization, last axis": one(
        "LayerNormalization", [3, 8], [3, 8], floats(8), floats(8), epsilon=1e-3
    ),
    "LayerNormalization, both axes": one("LayerNormalization", [3, 8], [3, 8], floats(3, 8), axis=1),
    "Softmax, last axis": one("Softmax", [3, 5], [3, 5]),
    "Softmax, middle axis": one("Softmax", [3, 5], [3, 5], axis=1),
    "Softmax, before opset 13": one("Softmax", [3, 5], [3, 5], opset=11, axis=1),
    "LogSoftmax, middle axis": one("LogSoftmax", [3, 5], [3, 5], axis=-2),
    "Gelu": one("Gelu", [9], [9]),
    "Gelu by tanh": one("Gelu", [9], [9], approximate="tanh"),
    "LeakyRelu": one("LeakyRelu", [9], [9], alpha=0.3),
    "Elu": one("Elu", [9], [9], alpha=0.3),
    "Selu": one("Selu", [9], [9], alpha=1.5, gamma=0.9),
    "HardSigmoid": one("HardSigmoid", [9], [9], alpha=0.4, beta=0.3),
    "Clip, both bounds": one("Clip", [9], [9], np.float32(-0.5), np.float32(0.25)),
    "Clip, upper bound": one("Clip", [9], [9], None, np.float32(0.25)),
    "Clip, attributes": one("Clip", [9], [9], opset=6, min=-0.5, max=0.25),
    "Pow 2": one("Pow", [9], [9], np.float32(2)),
    "Sub from a constant": chain([9], [9], {"c": floats(9)}, ("Sub", ["c", "features"], ["answer"], {})),
    "residual Add": chain(
        [6], [6], {"w": floats(6, 6)}, ("MatMul", ["features", "w"], ["x"], {}),
        ("Add", ["features", "x"], ["answer"], {}),
    ),
    "Split, Concat": chain(
        [7], [7], {"s": np.array([3, 4])}, ("Split", ["features", "s"], ["a", "b"], {"axis": 1}),
        ("Tanh", ["a"], ["c"], {}), ("Concat", ["b", "c"], ["answer"], {"axis": 1}),
    ),
    "Slice of a value that is read again": chain(
        [7], [7], {"s": np.array([0]), "e": np.array([7]), "a": np.array([1])},
        ("Sigmoid", ["features"], ["x"], {}), ("Slice", ["x", "s", "e", "a"], ["y"], {}),
        ("Mul", ["x", "y"], ["answer"], {}),
    ),
    "Pad with a number": one("Pad", [5], [8], np.array([0, 1, 0, 2]), np.float32(1.5)),
    "ReduceMean": one("ReduceMean", [3, 5], [5], np.array([1]), keepdims=0),
    "Conv": conv(),
    "Conv, dilated": conv(dilations=[3]),
    "Conv, causal: padded on one side": conv(dilations=[2], pads=[4, 0]),
    "Conv, groups": conv(group=2),
    "Conv, depthwise": conv(filters=4, group=4, pads=[1, 1]),
    "Conv, strides": conv(strides=[2], bias=False),
    "Conv, SAME_UPPER": conv(kernel=4, auto_pad="SAME_UPPER"),
    "Conv, SAME_LOWER": conv(kernel=4, strides=[2], auto_pad="SAME_LOWER"),
    **{
        f"{operation}, {answer}, {direction}": recurrent(operation, answer, direction)
        for operation in ("LSTM", "GRU")
        for answer in ("Y", "Y_h")
        for direction in ("forward", "reverse", "bidirectional")
    },
    **{
        f"GRU, reset first, {answer}, {direction}": recurrent("GRU", answer, direction, linear_before_reset=0)
        for answer in ("Y", "Y_h")
        for direction in ("forward", "reverse", "bidirectional")
    },
    "LSTM without bias": recurrent("LSTM", "Y_h", "forward", bias=False),
    "GRU without bias": recurrent("GRU", "Y_h", "forward", bias=False),
    "LSTM, a state of zeros": recurrent("LSTM", "Y_h", "forward", initial_h=ZEROS),
    **{
        f"LinearRegressor, {how}": linear("LinearRegressor", 3, post_transform=how)
        for how in ("NONE", "SOFTMAX")
    },
    **{
        f"LinearClassifier, {how}": linear("LinearClassifier", 3, post_transform=how)
        for how in ("NONE", "LOGISTIC", "SOFTMAX")
    },
    **{
        f"TreeEnsembleRegressor, {mode}": trees(mode=mode)
        for mode in ("BRANCH_LT", "BRANCH_GT", "BRANCH_GTE")
    },
    "TreeEnsembleRegressor, PROBIT": trees("PROBIT"),
    "TreeEnsembleRegressor, AVERAGE": trees(aggregate_function="AVERAGE", base_values=[0.5]),
    "Scaler": one("Scaler", [6], [6], domain=ML, offset=floats(6).tolist(), scale=floats(6).tolist()),
    "Scaler, one number": one("Scaler", [6], [6], domain=ML, offset=[0.5], scale=[2.0]),
    "Normalizer, L1": one("Normalizer", [6], [6], domain=ML, norm="L1"),
    "Normalizer, L2": one("Normalizer", [6], [6], domain=ML, norm="L2"),
    "Normalizer, MAX": (one("Normalizer", [6], [6], domain=ML, norm="MAX"), np.abs),
    "Imputer": (
        one(
            "Imputer", [6], [6], domain=ML, imputed_value_floats=floats(6).tolist(),
            replaced_value_float=float("nan"),
        ),
        with_holes,
    ),
    "Imputer, one number": (
        one("Imputer", [6], [6], domain=ML, imputed_value_floats=[2.5], replaced_value_float=float("nan")),
        with_holes,
    ),
    "Exp of large numbers": (one("Exp", [9], [9]), scaled(30.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_operation_gives_what_onnxruntime_gives(same_bits: Run, name: str) -> None:
    taken = TAKEN[name]
    model, change = taken if isinstance(taken, tuple) else (taken, np.asarray)
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    rows = change(np.random.default_rng(0).standard_normal((5, *dims)).astype(np.float32))
    expected = on_onnxruntime(model, rows)
    np.testing.assert_allclose(same_bits(model, rows)["plain"], expected.reshape(5, -1), rtol=1e-5, atol=2e-6)


def test_trees_of_one_target_obey_logistic_as_the_standard_says(same_bits: Run) -> None:
    """ONNX Runtime leaves the transform out where there is one target."""
    rows = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    plain: Any = ReferenceEvaluator(trees()).run(None, {"features": rows})
    expected = 1 / (1 + np.exp(-plain[0]))
    np.testing.assert_allclose(same_bits(trees("LOGISTIC"), rows)["plain"], expected, rtol=1e-6)


REFUSED: Final[dict[str, tuple[Model, str, str]]] = {
    "unknown operation": (one("Cos", [6], [6]), "Cos", "do not have it"),
    "peepholes": (recurrent("LSTM", "Y", "forward", peepholes=floats(1, 12)), "LSTM", "peepholes"),
    "sequence_lens": (
        recurrent("LSTM", "Y", "forward", sequence_lens=np.array([3], np.int32)), "LSTM", "different lengths"
    ),
    "state that is not zero": (
        recurrent("GRU", "Y", "forward", initial_h=floats(1, 1, 4)), "GRU", "state of zeros"
    ),
    "cell state as the answer": (recurrent("LSTM", "Y_c", "forward"), "LSTM", "last cell state"),
    "clip": (recurrent("LSTM", "Y", "forward", clip=1.0), "LSTM", "clip"),
    "input_forget": (recurrent("LSTM", "Y", "forward", input_forget=1), "LSTM", "input_forget"),
    "other functions": (recurrent("GRU", "Y", "forward", activations=["Sigmoid", "Relu"]), "GRU", "Relu"),
    "Softmax over the batch": (one("Softmax", [6], [6], axis=0), "Softmax", "over the batch"),
    "sum over the batch": (one("ReduceSum", [6], [6], np.array([0])), "ReduceSum", "batch"),
    "slice of the batch": (
        one("Slice", [6], [6], np.array([1]), np.array([2]), np.array([0])), "Slice", "part of the batch"
    ),
    "Reshape across rows": (one("Reshape", [6], [3], np.array([-1, 3])), "Reshape", "between rows"),
    "Cast to another type": (one("Cast", [6], [6], to=onnx.TensorProto.DOUBLE), "Cast", "another type"),
    "Gemm, transposed rows": (one("Gemm", [6], [6], floats(5, 6), transA=1), "Gemm", "batch, features"),
    "attention": (
        chain([6, 6], [6, 6], {}, ("MatMul", ["features", "features"], ["answer"], {})), "MatMul", "constant"
    ),
    "constant that differs between rows": (
        one("Add", [6], [6], floats(4, 6)), "Add", "differs between the rows"
    ),
    "third power": (one("Pow", [6], [6], np.float32(3)), "Pow", "0.5, 1 or 2"),
    "BatchNormalization in training": (
        one("BatchNormalization", [4], [4], *[floats(4) ** 2] * 4, training_mode=1, after=2),
        "BatchNormalization", "training",
    ),
    "Dropout in training": (
        one("Dropout", [6], [6], np.float32(0.5), np.array(True)), "Dropout", "training"
    ),
    "trees of which one decides": (trees(aggregate_function="MAX"), "TreeEnsembleRegressor", "MAX"),
    "one sum for two classes": (two_classes("SOFTMAX"), "TreeEnsembleClassifier", "SOFTMAX"),
    "trees that ask for equality": (trees(mode="BRANCH_EQ"), "TreeEnsembleRegressor", "BRANCH_EQ"),
    "SOFTMAX_ZERO": (trees("SOFTMAX_ZERO"), "TreeEnsembleRegressor", "SOFTMAX_ZERO"),
    "one score for two classes": (linear("LinearClassifier", 1), "LinearClassifier", "one score"),
    "Imputer of a number": (
        one("Imputer", [6], [6], domain=ML, imputed_value_floats=[1.0], replaced_value_float=-1.0),
        "Imputer", "replaces a number",
    ),
    "Pad with infinity": (one("Pad", [5], [8], np.array([0, 1, 0, 2]), np.float32("-inf")), "Pad", "inf"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_even_without_kernels(name: str) -> None:
    model, operation, why = REFUSED[name]
    with pytest.raises(NotCovered, match=why) as refused:
        plan_of(model)
    assert refused.value.operation == operation
    assert str(refused.value).startswith(operation)


_DOUBLES = st.floats(-1e38, allow_nan=False) | st.floats(-4.0, 4.0) | st.integers(-9, 9).map(float)


@given(threshold=_DOUBLES, steps=st.integers(-3, 3))
@settings(deadline=None)
def test_thresholds_of_doubles_part_the_same_floats_without_kernels(threshold: float, steps: int) -> None:
    near = np.clip(threshold, -FLOAT_MAX, FLOAT_MAX).astype(np.float32)
    for _ in range(abs(steps)):
        near = np.nextafter(near, np.float32(np.sign(steps) * FLOAT_MAX), dtype=np.float32)
    feature = 0.0 if abs(near) < np.finfo(np.float32).smallest_normal else float(near)
    assert (feature <= at_most(threshold)) == (feature <= threshold)
    assert (feature <= less_than(threshold)) == (feature < threshold)
