"""Which inputs number the rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from sigd.models.onnx.lookups import table_rows

TABLES = {"long": np.zeros((100, 2), np.float32), "short": np.zeros((2, 7), np.float32)}


def node(operation: str, *reads: str, gives: str = "y", **how: Any) -> NodeProto:
    return helper.make_node(operation, list(reads), [gives], **how)


def model(*nodes: NodeProto) -> ModelProto:
    inputs = [helper.make_tensor_value_info("number", TensorProto.INT64, ["N"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tables = [numpy_helper.from_array(values, name) for name, values in TABLES.items()]
    return helper.make_model(helper.make_graph(list(nodes), "g", inputs, outputs, tables))


@pytest.mark.parametrize(
    ("nodes", "rows"),
    [
        ([node("Gather", "long", "number")], 100),
        ([node("Gather", "short", "number", axis=1)], 7),
        ([node("Gather", "long", "number", gives="a"), node("Gather", "short", "number", axis=1)], 7),
        ([node("Identity", "number", gives="a"), node("Gather", "long", "a")], 100),
        (
            [
                node("Constant", gives="of_node", value=numpy_helper.from_array(np.zeros((9, 2)))),
                node("Gather", "of_node", "number"),
            ],
            9,
        ),
        ([node("Add", "number", "number", gives="a"), node("Gather", "long", "a")], 0),
        ([node("Gather", "number", "number")], 0),
        ([node("Cast", "number", to=TensorProto.FLOAT)], 0),
    ],
)
def test_an_input_numbers_the_rows_of_the_shortest_table(nodes: list[NodeProto], rows: int) -> None:
    assert table_rows(model(*nodes), "number") == rows
