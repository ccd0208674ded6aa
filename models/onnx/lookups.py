"""Which inputs number the rows of a table, as an instrument's number does of an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_KEEP_EACH_NUMBER: Final = frozenset(
    {
        "Cast",
        "Concat",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators behind which the numbers are what they were, in other places."""


def table_rows(model: ModelProto, name: str) -> int:
    """Rows of the shortest table that the graph reads by the numbers of an input; 0 where it reads none."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    numbers, found = {name}, []
    for node in model.graph.node:
        if node.op_type == "Constant":
            tables[node.output[0]] = next((tuple(each.t.dims) for each in node.attribute), ())
        elif node.op_type == "Gather" and node.input[1] in numbers and node.input[0] in tables:
            dims, axis = tables[node.input[0]], _axis(node)
            if axis < len(dims):
                found.append(dims[axis])
        elif node.op_type in _KEEP_EACH_NUMBER and not numbers.isdisjoint(node.input):
            numbers.update(node.output)
    return min(found, default=0)


def _axis(node: NodeProto) -> int:
    return next((int(each.i) for each in node.attribute if each.name == "axis"), 0)
