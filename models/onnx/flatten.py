"""A graph with any inputs and outputs, wrapped so that it reads one flat float32 row and answers with one.

In front: Split, Reshape, Transpose, Cast. Behind: LabelEncoder, Cast, Transpose, Reshape, Concat. Each only
where it is
needed: a side that is one float32 tensor with the batch in front is left as it is, and costs nothing.
The inner tensors keep their names, so that no node of the model itself is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sigd.models.onnx.columns import WHOLE_CALL, Columns, row_width

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

ROW_INPUT: Final = "sigd.features"
"""What the wrapped graph calls its input."""
ROW_OUTPUT: Final = "sigd.outputs"
"""What it calls its output."""
_SPLIT_BY_INPUT: Final = 13
"""From this opset on the sizes are an input of Split, before an attribute."""
_LABELS_BY_KEYS: Final = 2
"""From this version of ai.onnx.ml on LabelEncoder maps keys to values, before it knew only text to index."""
_HALF: Final = ("float16", "bfloat16")
"""ONNX Runtime computes these in float32, and would leave the rounding out where two casts meet: a Reshape
keeps them apart, so that the answers are those of the file."""
_OPSET_WHERE_NONE: Final = 13
_ML_VERSION_WHERE_NONE: Final = 2
_ML: Final = "ai.onnx.ml"


def input_is_flat(inputs: Sequence[Columns]) -> bool:
    """Whether a backend writes the rows where the graph reads them."""
    return len(inputs) == 1 and inputs[0].is_flat


def output_is_flat(outputs: Sequence[Columns]) -> bool:
    """Whether a backend reads the answers where the graph writes them."""
    return len(outputs) == 1 and outputs[0].is_flat and not outputs[0].text


def flatten(
    model: ModelProto, inputs: Sequence[Columns], outputs: Sequence[Columns], *, sizes_hidden: bool = False
) -> None:
    """Wrap a model in place. What it has besides `inputs` and `outputs` is no longer asked for.

    Args:
        model: with all its weights inside.
        inputs: all of the graph's, in the order of the row's columns.
        outputs: those that are served; of a ZipMap the tensor that it reads.
        sizes_hidden: whether the runtime is kept from working out shapes from the sizes of the inputs. Where
            a graph has branches, the one that will not run need not fit them, and is refused.
    """
    flatten_inputs(model, inputs, sizes_hidden=sizes_hidden)
    drop_zip_maps(model)
    wrapper = _Wrapper(model)
    if output_is_flat(outputs):
        _set_output(model, outputs[0].source, outputs[0].dims, outputs[0].batch_axis)
        return
    parts = [wrapper.flat(one) for one in outputs]
    if len(parts) == 1:
        wrapper.node("Identity", parts, ROW_OUTPUT)
    else:
        wrapper.node("Concat", parts, ROW_OUTPUT, axis=1)
    model.graph.node.extend(wrapper.nodes)
    _set_output(model, ROW_OUTPUT, (row_width(outputs),), outputs[0].batch_axis)


def flatten_inputs(model: ModelProto, inputs: Sequence[Columns], *, sizes_hidden: bool = False) -> None:
    """The front half of `flatten`."""
    from onnx import TensorProto, helper

    graph = model.graph
    names = {one.name for one in inputs}
    others = [value for value in graph.input if value.name not in names]
    batch: int | str | None = 1 if inputs[0].batch_axis == WHOLE_CALL else "N"
    dims: tuple[int | None, ...]
    if input_is_flat(inputs):
        name, dims = inputs[0].name, inputs[0].dims
        batch = _fixed_batch(model, name) or "N"
    else:
        name, dims = ROW_INPUT, (row_width(inputs),)
        batch = _common_batch(model, inputs) or batch
        wrapper = _Wrapper(model, sizes_hidden=sizes_hidden)
        if sizes_hidden:
            # Of a row whose shape is known the runtime would know every other.
            batch, dims = None, (None,)
        wrapper.unpack(inputs)
        nodes = [*wrapper.nodes, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *dims]))
    graph.input.extend(others)


def drop_zip_maps(model: ModelProto) -> None:
    """Take the ZipMap nodes off: what they read is what is served."""
    graph = model.graph
    for node in [node for node in graph.node if is_zip_map(node)]:
        graph.node.remove(node)


def is_zip_map(node: NodeProto) -> bool:
    """Whether a node makes a sequence of maps out of a tensor."""
    return node.op_type == "ZipMap" and node.domain == _ML


class _Wrapper:
    """Nodes that are put around a graph."""

    def __init__(self, model: ModelProto, *, sizes_hidden: bool = False) -> None:
        self._model = model
        self._sizes_hidden = sizes_hidden
        self._width = 0
        self.nodes: list[NodeProto] = []

    def node(
        self, operator: str, reads: Sequence[str], gives: str | Sequence[str], domain: str = "", **how: Any
    ) -> None:
        from onnx import helper

        if not domain:
            _version(self._model, "", _OPSET_WHERE_NONE)
        gives = [gives] if isinstance(gives, str) else list(gives)
        self.nodes.append(helper.make_node(operator, list(reads), gives, domain=domain, **how))

    def unpack(self, inputs: Sequence[Columns]) -> None:
        """From the row to each input."""
        self._width = row_width(inputs)
        pieces = [ROW_INPUT]
        if len(inputs) > 1:
            pieces = [f"sigd/{one.name}/columns" for one in inputs]
            widths = [one.width for one in inputs]
            if _version(self._model, "", _OPSET_WHERE_NONE) >= _SPLIT_BY_INPUT:
                self.node("Split", [ROW_INPUT, self._shape("sigd/widths", widths)], pieces, axis=1)
            else:
                self.node("Split", [ROW_INPUT], pieces, axis=1, split=widths)
        for one, piece in zip(inputs, pieces, strict=True):
            self._unpack(one, piece)

    def _unpack(self, one: Columns, piece: str) -> None:
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        rows = () if one.batch_axis == WHOLE_CALL else (-1,)
        if (*rows, *one.dims) != (-1, one.width) or self._sizes_hidden:
            shape = self._shape(f"sigd/{one.name}/shape", [*rows, *one.dims])
            steps.append(("Reshape", [self._hidden(shape) if self._sizes_hidden else shape], {}))
        if one.batch_axis > 0:
            axes = list(range(1, len(one.dims) + 1))
            steps.append(("Transpose", [], {"perm": [*axes[: one.batch_axis], 0, *axes[one.batch_axis :]]}))
        if one.dtype != "float32" or not steps:
            steps.append(("Cast", [], {"to": _element_type(one.dtype)}))
        if one.dtype in _HALF:
            steps.append(("Reshape", [self._shape(f"sigd/{one.name}/kept", _kept_shape(one))], {}))
        for number, (operator, more, how) in enumerate(steps, 1):
            gives = one.name if number == len(steps) else f"sigd/{one.name}/in{number}"
            self.node(operator, [piece, *more], gives, **how)
            piece = gives

    def flat(self, one: Columns) -> str:
        """From an output to its columns, float32 [N, width]; the name of that tensor."""
        name = one.source
        if one.text:
            name = self._numbers(one)
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        if one.dtype in _HALF:
            steps.append(("Reshape", [self._shape(f"sigd/{one.name}/kept", _kept_shape(one))], {}))
        if one.text or one.dtype != "float32":
            steps.append(("Cast", [], {"to": _element_type("float32")}))
        if one.batch_axis > 0:
            axes = list(range(len(one.dims) + 1))
            axes.remove(one.batch_axis)
            steps.append(("Transpose", [], {"perm": [one.batch_axis, *axes]}))
        if one.batch_axis == WHOLE_CALL or len(one.dims) != 1:
            rows = 1 if one.batch_axis == WHOLE_CALL else -1
            steps.append(("Reshape", [self._shape(f"sigd/{one.name}/flat", [rows, one.width])], {}))
        for number, (operator, more, how) in enumerate(steps, 1):
            gives = f"sigd/{one.name}/out{number}"
            self.node(operator, [name, *more], gives, **how)
            name = gives
        return name

    def _numbers(self, one: Columns) -> str:
        """The place of each text of an output among its labels, -1 for one that is none of them."""
        gives = f"sigd/{one.name}/number"
        if _version(self._model, _ML, _ML_VERSION_WHERE_NONE) >= _LABELS_BY_KEYS:
            how: dict[str, Any] = {
                "keys_strings": list(one.labels),
                "values_int64s": list(range(len(one.labels))),
                "default_int64": -1,
            }
        else:
            how = {"classes_strings": list(one.labels), "default_int64": -1}
        self.node("LabelEncoder", [one.source], gives, domain=_ML, **how)
        return gives

    def _hidden(self, shape: str) -> str:
        """The same sizes, times a 1 that is known only once there is a row: its width by its width."""
        one = f"{shape}/one"
        self.node("Shape", [ROW_INPUT], f"{one}/shape")
        self.node("Gather", [f"{one}/shape", self._shape(f"{one}/axis", [1])], f"{one}/width")
        self.node("Div", [f"{one}/width", self._shape(f"{one}/by", [self._width])], one)
        self.node("Mul", [shape, one], f"{shape}/hidden")
        return f"{shape}/hidden"

    def _shape(self, name: str, sizes: Sequence[int]) -> str:
        """A constant. No initializer: before IR version 4 those are inputs too."""
        from onnx import numpy_helper

        self.node("Constant", [], name, value=numpy_helper.from_array(np.array(sizes, np.int64), name))
        return name


def _kept_shape(one: Columns) -> list[int]:
    """The shape that a tensor has anyway."""
    shape = list(one.dims)
    if one.batch_axis != WHOLE_CALL:
        shape.insert(one.batch_axis, -1)
    return shape


def _version(model: ModelProto, domain: str, where_none: int) -> int:
    """The version of a domain's operators; that of a domain which the model did without is added."""
    from onnx import helper

    for entry in model.opset_import:
        if entry.domain == domain or (not domain and entry.domain == "ai.onnx"):
            return int(entry.version)
    model.opset_import.append(helper.make_opsetid(domain, where_none))
    return where_none


def _element_type(dtype: str) -> int:
    from onnx import TensorProto

    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    return int(TensorProto.DataType.Value(names.get(dtype, dtype.upper())))


def _fixed_batch(model: ModelProto, name: str) -> int | None:
    value = next(value for value in model.graph.input if value.name == name)
    first = value.type.tensor_type.shape.dim[0]
    return first.dim_value if first.HasField("dim_value") and first.dim_value > 0 else None


def _common_batch(model: ModelProto, inputs: Sequence[Columns]) -> int | None:
    return None if inputs[0].batch_axis != 0 else _fixed_batch(model, inputs[0].name)


def _set_output(model: ModelProto, name: str, dims: Sequence[int], batch_axis: int) -> None:
    """The one output of the graph, with the shape that it really has."""
    from onnx import TensorProto, helper

    batch = 1 if batch_axis == WHOLE_CALL else None
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *dims]))
