"""Models of any inputs and outputs as rows of float32: bit-equal to ONNX Runtime on the file as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, save
from tests.exporters.reference import Reference

from sigd.models.errors import ModelRefused
from sigd.models.onnx.columns import Columns
from sigd.models.onnxrt import OnnxRuntimeBackend
from sigd.models.oracle import OracleBackend
from sigd.models.reading import ReadOptions
from sigd.models.spec import ModelSpec, read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

    from sigd.models.backend import Backend

FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING
WEIGHTS = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)
W = numpy_helper.from_array(WEIGHTS, "w")
Dims = Sequence[int | str | None]


def value(name: str, dtype: int, dims: Dims) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(dims))


def zip_map_output(name: str) -> ValueInfoProto:
    of = helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, []))
    return helper.make_value_info(name, helper.make_sequence_type_proto(of))


def write(
    folder: Path,
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: Sequence[TensorProto] = (W,),
    opset: int = 17,
    ml: int = 3,
) -> Path:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    model: ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ml)]
    )
    model.ir_version = 8
    path = folder / "model.onnx"
    save(model, path)
    return path


@contextmanager
def opened(backend: Backend) -> Iterator[Backend]:
    backend.open()
    try:
        yield backend
    finally:
        backend.close()


def rows_for(spec: ModelSpec, count: int = 5) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(1)
    rows = draw.standard_normal((count, spec.features)).astype(np.float32)
    for one in spec.input_columns:
        if one.integers is not None:
            low, high = one.integers
            own = slice(one.first, one.first + one.width)
            rows[:, own] = draw.integers(max(low, 0), min(high, 3) + 1, (count, one.width))
    return rows


def answers(backend: Backend, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    given = []
    for row in rows:
        backend.inputs[0] = row
        backend.submit(1)
        given.append(backend.outputs[0].copy())
    return np.array(given)


def check(path: Path, sizes: dict[str, int] | None = None) -> ModelSpec:
    """Served bit-equal to ONNX Runtime, one row a call and, where it may, in a batch."""
    spec = read_spec(path, options=ReadOptions(sizes or {}))
    rows = rows_for(spec)
    text = next((one.labels for one in spec.output_columns if one.text), ())
    reference = Reference(path, sizes or {}, text)
    expected = np.array([reference.answer(row) for row in rows])
    with opened(OnnxRuntimeBackend(spec, 8)) as backend:
        assert np.array_equal(answers(backend, rows), expected)
        if spec.batch_rows is None:
            backend.inputs[: len(rows)] = rows
            backend.submit(len(rows))
            np.testing.assert_allclose(backend.outputs[: len(rows)], expected, rtol=1e-6, atol=1e-6)
    return spec


MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"])


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_several_inputs_and_outputs_lie_side_by_side(tmp_path: Path, opset: int) -> None:
    nodes = [
        helper.make_node("Concat", ["book", "trades"], ["x"], axis=1),
        MATMUL,
        helper.make_node("ReduceMax", ["y"], ["total"], axes=[1], keepdims=0),
    ]
    path = write(
        tmp_path,
        nodes,
        [value("book", FLOAT, ["N", 3]), value("trades", FLOAT, ["N", 1])],
        [value("y", FLOAT, ["N", 3]), value("total", FLOAT, ["N"])],
        opset=opset,
    )
    spec = check(path)
    assert [(one.name, one.first, one.width) for one in spec.input_columns] == [
        ("book", 0, 3),
        ("trades", 3, 1),
    ]
    assert [(one.name, one.first, one.width) for one in spec.output_columns] == [("y", 0, 3), ("total", 3, 1)]
    assert [spec.feature_name(column) for column in (0, 2, 3)] == ["book[0]", "book[2]", "trades[0]"]


def test_axes_are_flattened_in_c_order(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["window"], ["flat"]),
        helper.make_node("Add", ["flat", "bias"], ["y"]),
    ]
    spec = check(
        write(
            tmp_path,
            nodes,
            [value("window", FLOAT, ["N", 2, 3]), value("bias", FLOAT, ["N", 6])],
            [value("y", FLOAT, ["N", 6])],
        )
    )
    assert spec.feature_name(5) == "window[1][2]"


@pytest.mark.parametrize(
    "dtype",
    [
        "DOUBLE",
        "FLOAT16",
        "BFLOAT16",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "BOOL",
    ],
)
def test_inputs_of_every_type_are_converted(tmp_path: Path, dtype: str) -> None:
    nodes = [helper.make_node("Cast", ["given"], ["x"], to=FLOAT), MATMUL]
    path = write(
        tmp_path,
        nodes,
        [value("given", TensorProto.DataType.Value(dtype), ["N", 4])],
        [value("y", FLOAT, ["N", 3])],
    )
    assert check(path).wrapped


@pytest.mark.parametrize("dtype", ["DOUBLE", "FLOAT16", "INT8", "INT32", "INT64", "UINT8", "BOOL"])
def test_outputs_of_every_type_are_converted(tmp_path: Path, dtype: str) -> None:
    to = TensorProto.DataType.Value(dtype)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Cast", ["z"], ["y"], to=to)]
    check(write(tmp_path, nodes, [value("x", FLOAT, ["N", 4])], [value("y", to, ["N", 3])]))


def test_an_instrument_number_a_row_is_one_column(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["w", "instrument"], ["known"]),
        helper.make_node("Add", ["known", "x"], ["y"]),
    ]
    path = write(
        tmp_path,
        nodes,
        [value("instrument", INT64, ["N"]), value("x", FLOAT, ["N", 3])],
        [value("y", FLOAT, ["N", 3])],
    )
    spec = check(path)
    assert spec.input_columns[0] == Columns("instrument", "int64", (), table=len(WEIGHTS))
    assert spec.features == 4


@pytest.mark.parametrize("zeros", [0, 1])
def test_a_category_that_is_not_known_is_refused_with_what_serves_it(tmp_path: Path, zeros: int) -> None:
    nodes = [
        helper.make_node(
            *("OneHotEncoder", ["venue"], ["hot"]), domain="ai.onnx.ml", cats_int64s=[3, 7, 8, 9], zeros=zeros
        ),
        helper.make_node("MatMul", ["hot", "w"], ["y"]),
    ]
    path = write(tmp_path, nodes, [value("venue", INT64, ["N"])], [value("y", FLOAT, ["N", 3])])
    if zeros:
        check(path)
        return
    with pytest.raises(ModelRefused, match=r"not in the training.*OneHotEncoder\(handle_unknown='ignore'\)"):
        read_spec(path)


def classifier(texts: bool, probabilities: str) -> NodeProto:
    classes: dict[str, Any] = (
        {"classlabels_strings": ["down", "flat", "up"]} if texts else {"classlabels_ints": [-1, 0, 1]}
    )
    return helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", probabilities],
        domain="ai.onnx.ml",
        coefficients=WEIGHTS.T.reshape(-1).tolist(),
        intercepts=[0.1, 0.0, -0.1],
        post_transform="SOFTMAX",
        **classes,
    )


@pytest.mark.parametrize("ml", [1, 3])
@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("zip_map", [False, True])
def test_a_classifier_answers_label_and_probabilities(
    tmp_path: Path, texts: bool, zip_map: bool, ml: int
) -> None:
    nodes = [classifier(texts, "scores" if zip_map else "probabilities")]
    keys: dict[str, Any] = (
        {"classlabels_strings": ["down", "flat", "up"]} if texts else {"classlabels_int64s": [-1, 0, 1]}
    )
    if zip_map:
        nodes.append(helper.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", **keys))
    outputs = [
        # A width that is wrong, as LightGBM's converter declares it.
        value("label", STRING if texts else INT64, [1]),
        zip_map_output("probabilities") if zip_map and not texts else value("probabilities", FLOAT, ["N", 3]),
    ]
    if zip_map and texts:
        of = helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, []))
        outputs[1] = helper.make_value_info("probabilities", helper.make_sequence_type_proto(of))
    path = write(tmp_path, nodes, [value("x", FLOAT, ["N", 4])], outputs, weights=(), ml=ml)
    spec = check(path)
    label, probabilities = spec.output_columns
    assert (label.name, label.width, label.text) == ("label", 1, texts)
    assert (probabilities.name, probabilities.width) == ("probabilities", 3)
    assert probabilities.labels == (("down", "flat", "up") if texts else ("-1", "0", "1"))
    assert spec.input_name == "x"


def test_a_plain_model_is_served_as_it_is(models: ModelMaker) -> None:
    spec = read_spec(models.mlp())
    assert not spec.wrapped
    assert spec.input_columns == (Columns("features", "float32", (8,)),)


def test_a_batch_on_another_axis_is_brought_to_the_front(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)]
    path = write(tmp_path, nodes, [value("x", FLOAT, [5, "N", 4])], [value("y", FLOAT, ["N", 4])], weights=())
    spec = check(path)
    assert (spec.features, spec.outputs, spec.batch_rows) == (20, 4, None)


def test_a_call_without_a_batch_is_one_row(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["state", "step"], ["y"])]
    path = write(
        tmp_path,
        nodes,
        [value("state", FLOAT, [2, 1, 3]), value("step", FLOAT, [])],
        [value("y", FLOAT, [2, 1, 3])],
        weights=(),
    )
    spec = check(path)
    assert (spec.features, spec.outputs, spec.batch_rows) == (7, 6, 1)


def test_a_fixed_batch_axis_makes_the_call_one_row(tmp_path: Path) -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=0)]
    path = write(
        tmp_path,
        nodes,
        [value("x", FLOAT, ["instruments", 2])],
        [value("y", FLOAT, ["instruments", 2])],
        weights=(),
    )
    spec = check(path, {"instruments": 3})
    assert (spec.features, spec.outputs, spec.batch_rows) == (6, 6, 1)


@pytest.mark.parametrize("key", ["T", "x.1"])
def test_a_free_axis_is_given_its_size(tmp_path: Path, key: str) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)]
    path = write(
        tmp_path, nodes, [value("x", FLOAT, ["N", "T", 4])], [value("y", FLOAT, ["N", 4])], weights=()
    )
    assert check(path, {key: 5}).features == 20


def test_an_output_without_rows_is_left_out(tmp_path: Path) -> None:
    nodes = [MATMUL, helper.make_node("ReduceSum", ["w"], ["norm"], keepdims=0)]
    path = write(
        tmp_path,
        nodes,
        [value("x", FLOAT, ["N", 4])],
        [value("y", FLOAT, ["N", 3]), value("norm", FLOAT, [])],
    )
    spec = read_spec(path)
    assert [one.name for one in spec.output_columns] == ["y"]
    assert spec.left_out[0][0] == "norm"


def test_the_oracle_answers_alike(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["side"], ["s"], to=FLOAT),
        helper.make_node("Concat", ["x0", "s"], ["x"], axis=1),
        MATMUL,
        helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
    ]
    path = write(
        tmp_path,
        nodes,
        [value("x0", FLOAT, ["N", 3]), value("side", BOOL, ["N", 1])],
        [value("y", FLOAT, ["N", 3]), value("best", INT64, ["N"])],
    )
    spec = check(path)
    rows = rows_for(spec)
    with opened(OnnxRuntimeBackend(spec, 8)) as runtime, opened(OracleBackend(spec, 8)) as oracle:
        np.testing.assert_allclose(answers(oracle, rows), answers(runtime, rows), rtol=1e-6, atol=1e-6)
