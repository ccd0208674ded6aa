"""Operators that work across the batch by their definition, found in the graph without running it.

Shapes are inferred with a name of our own for the batch axis, so that an axis is taken for the batch only
where the standard's rules say that it is one: attention over the time axis of a transposed tensor is left
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

_BATCH: Final = "sigd_batch"
_KEPT_VALUES_MAX: Final = 1024
"""Larger constants are weights: their values say nothing about shapes."""
TRAINING_MODE: Final = "in training mode"
"""How the name of a node ends that normalises each value of a row by its mean and variance over the batch."""
_WHOLE_TENSOR: Final = frozenset(
    {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "DynamicQuantizeGRU"}
)
"""They take one scale from all values of their input."""
_REDUCTIONS: Final = frozenset(
    {
        *(
            f"Reduce{what}"
            for what in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum")
        ),
        "ReduceSumSquare",
    }
)
_ONE_AXIS: Final[Mapping[str, int]] = {
    "Softmax": -1,
    "LogSoftmax": -1,
    "Hardmax": -1,
    "LpNormalization": -1,
    "ArgMax": 0,
    "ArgMin": 0,
    "TopK": -1,
}
"""Operators with the attribute `axis`, and what it is where it is not given."""
_FLATTENING: Final = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
"""Before opset 13 these worked over all axes from theirs on, which was axis 1 where it was not given."""
_FLATTENING_OPSET: Final = 13
_ROW_RANK: Final = 2
_MEAN_VARIANCE_AXES: Final = (0, 2, 3)


def batch_spanning(model: ModelProto) -> tuple[str, ...]:
    """The nodes of the graph that work across the batch by their definition, named for messages. One that
    only might is not among them."""
    candidates = [node for node in model.graph.node if _may_span(node)]
    if not candidates:
        return ()
    dims = _inferred_dims(model)
    constants = _constants(model.graph)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    fed = _fed_by_input(model.graph)
    return tuple(
        _shown(node, dims)
        for node in candidates
        if node.input and node.input[0] in fed and _spans(node, dims, constants, opset)
    )


def _may_span(node: NodeProto) -> bool:
    return (
        node.op_type in _WHOLE_TENSOR
        or node.op_type in _REDUCTIONS
        or node.op_type in _ONE_AXIS
        or node.op_type in ("CumSum", "BatchNormalization", "MeanVarianceNormalization")
    )


def _spans(
    node: NodeProto,
    dims: Mapping[str, tuple[int | str, ...]],
    constants: Mapping[str, tuple[int, ...]],
    opset: int,
) -> bool:
    if node.op_type in _WHOLE_TENSOR:
        return True
    attributes = {attribute.name: attribute for attribute in node.attribute}
    shape = dims.get(node.input[0], ())
    if _BATCH not in shape:
        return False
    batch_axis = shape.index(_BATCH)
    if node.op_type == "BatchNormalization":
        return _integer(attributes, "training_mode", 0) == 1
    axes = _axes(node, attributes, constants, opset, len(shape))
    return axes is not None and batch_axis in {axis % len(shape) for axis in axes}


def _axes(
    node: NodeProto,
    attributes: Mapping[str, AttributeProto],
    constants: Mapping[str, tuple[int, ...]],
    opset: int,
    rank: int,
) -> Iterable[int] | None:
    """The axes that a node works over; None where the graph computes them."""
    kind = node.op_type
    if kind in _FLATTENING and opset < _FLATTENING_OPSET:
        return range(_integer(attributes, "axis", 1) % rank, rank)
    if kind in _ONE_AXIS:
        return (_integer(attributes, "axis", _ONE_AXIS[kind]),)
    if kind == "CumSum":
        return constants.get(node.input[1])
    if "axes" in attributes:
        return tuple(attributes["axes"].ints)
    if kind == "MeanVarianceNormalization":
        return _MEAN_VARIANCE_AXES
    if len(node.input) > 1 and node.input[1]:
        return constants.get(node.input[1])
    return () if _integer(attributes, "noop_with_empty_axes", 0) else range(rank)


def _integer(attributes: Mapping[str, AttributeProto], name: str, otherwise: int) -> int:
    return int(attributes[name].i) if name in attributes else otherwise


def _constants(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    """The integers that the graph holds, by name."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    return {
        name: tuple(numpy_helper.to_array(tensor).astype(int).ravel().tolist())
        for name, tensor in tensors.items()
        if tensor.data_type in (tensor.INT32, tensor.INT64)
    }


def _fed_by_input(graph: GraphProto) -> set[str]:
    """The tensors that depend on the model's input."""
    held = {tensor.name for tensor in graph.initializer}
    fed = {value.name for value in graph.input} - held
    for node in graph.node:
        if fed.intersection(node.input):
            fed.update(node.output)
    return fed


def _inferred_dims(model: ModelProto) -> dict[str, tuple[int | str, ...]]:
    """The axes of every tensor as far as they can be inferred: a size, a name, or "" where nothing is
    known."""
    from onnx import helper
    from onnx.shape_inference import InferenceError, infer_shapes

    bare = _without_weights(model)
    held = {tensor.name for tensor in bare.graph.initializer}
    for value in bare.graph.input:
        if value.name not in held and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = _BATCH
    # What the exporter wrote about shapes has its own name for the batch, which inference would keep.
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    for tensor in model.graph.initializer:
        if tensor.name not in held:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        graph = infer_shapes(bare, data_prop=True).graph
    except (InferenceError, ValueError):
        graph = bare.graph
    values: Iterable[ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else str(dim.dim_param)
            for dim in value.type.tensor_type.shape.dim
        )
        for value in values
    }


def _without_weights(model: ModelProto) -> ModelProto:
    """The model without its large constants, which inference would copy twice."""
    from onnx import ModelProto

    bare = ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = "bare"
    bare.graph.node.extend(model.graph.node)
    weights = {tensor.name for tensor in model.graph.initializer if _values(tensor.dims) > _KEPT_VALUES_MAX}
    bare.graph.input.extend(value for value in model.graph.input if value.name not in weights)
    bare.graph.output.extend(model.graph.output)
    bare.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in weights)
    return bare


def _values(dims: Iterable[int]) -> int:
    count = 1
    for dim in dims:
        count *= dim
    return count


def _shown(node: NodeProto, dims: Mapping[str, tuple[int | str, ...]]) -> str:
    named = f"{node.op_type} {node.name or node.output[0]!r}"
    one_value = node.op_type == "BatchNormalization" and len(dims.get(node.input[0], ())) == _ROW_RANK
    return f"{named} {TRAINING_MODE}" if one_value else named
