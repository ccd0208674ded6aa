"""Integer and bool inputs in the native kernels, where the graph only turns them into floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import NodeProto, TensorProto, helper
from tests.models.onnx.test_flatten import FLOAT, INT64, W, answers, opened, rows_for, value, write

from sigd.models.native.backend import NativeBackend, kernels_are_built
from sigd.models.native.lowering import NotCovered, lower
from sigd.models.onnxrt import OnnxRuntimeBackend
from sigd.models.spec import ModelSpec, read_served, read_spec


def node(operation: str, reads: list[str], gives: str, **how: Any) -> NodeProto:
    return helper.make_node(operation, reads, [gives], **how)


def spec_of(folder: Path, *between: NodeProto, dtype: int = INT64) -> ModelSpec:
    """Four integers, what is done with them as "changed", and a product."""
    nodes = [*between, node("Cast", ["changed"], "floats", to=FLOAT), node("MatMul", ["floats", "w"], "y")]
    inputs, outputs = [value("x", dtype, ["N", 4])], [value("y", FLOAT, ["N", 3])]
    return read_spec(write(folder, nodes, inputs, outputs, [W]))


@pytest.mark.skipif(not kernels_are_built(), reason="the native kernels are not built: python hatch_build.py")
@pytest.mark.parametrize("dtype", ["INT64", "INT8", "BOOL"])
def test_integers_are_what_they_are_as_floats(tmp_path: Path, dtype: str) -> None:
    same = (
        node("Cast", ["x"], "changed", to=INT64)
        if dtype != "BOOL"
        else node("Cast", ["x"], "changed", to=FLOAT)
    )
    spec = spec_of(tmp_path, same, dtype=TensorProto.DataType.Value(dtype))
    rows = rows_for(spec)
    with opened(NativeBackend(spec, 4)) as native, opened(OnnxRuntimeBackend(spec, 4)) as other:
        assert answers(native, rows) == pytest.approx(answers(other, rows), abs=1e-5)


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (node("Add", ["x", "x"], "changed"), "Add: computes with integers"),
        (node("Cast", ["x"], "changed", to=TensorProto.INT8), "Cast: to another type than float32"),
    ],
)
def test_integers_that_the_graph_computes_with_are_not_covered(
    tmp_path: Path, between: NodeProto, words: str
) -> None:
    spec = spec_of(tmp_path, between)
    with pytest.raises(NotCovered, match=words):
        lower(read_served(spec).model, spec)


def test_floats_that_the_graph_turns_into_integers_are_not_covered(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, node("Cast", ["x"], "changed", to=INT64), dtype=FLOAT)
    with pytest.raises(NotCovered, match="to another type than float32"):
        lower(read_served(spec).model, spec)
