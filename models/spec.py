"""What a model is, read from its own file: names, shapes, batch axis and digest.

A model is served when it maps one float32 input to one float32 output and its first axis is the batch. Inputs
and outputs of more than two axes are served flattened in C order; an output of one axis, [N], is one output
per row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sigd.models.errors import ModelRefused
from sigd.models.onnx.batch_axis import batch_spanning
from sigd.models.onnx.file import OnnxFile, read_onnx

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

FEATURES_MAX = 16_373
"""The most features that one request frame carries: its length is a 16-bit count of bytes."""
OUTPUTS_MAX = 16_370
"""The most outputs that one response frame carries."""
NAME_BYTES_MAX = 32
"""The most UTF-8 bytes of a model's name: the size of the field that carries it to clients."""

Dim = int | str | None
"""One axis: its size, the name that stands for it, or None where the file says nothing."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is served, for a client that sends flat rows of float32.

    Attributes:
        name: at most 32 UTF-8 bytes.
        path: the file.
        sha256: 32 bytes, the digest of the file (of its files of weights too, see `OnnxFile`).
        input_name: the graph's name for its input.
        output_name: the graph's name for its output.
        features: values per row of the input, the product of `input_dims`.
        outputs: values per row of the output, the product of `output_dims`.
        input_dims: the input's axes without the batch; empty for an input of one axis, [N].
        output_dims: the output's axes without the batch; empty for an output of one axis, [N].
        batch_rows: None where any batch runs; k where the file fixes it to k rows. A fixed batch always runs
            whole: fewer rows cost the same time as k, and never more than k run together.
        opset: version of the standard operators; None where the file does not say (a built engine).
        across_batch: the nodes that work across the batch by their definition, for messages; see
            `sigd.models.onnx.batch_axis`.
    """

    name: str
    path: Path
    sha256: bytes
    input_name: str
    output_name: str
    features: int
    outputs: int
    input_dims: tuple[int, ...]
    output_dims: tuple[int, ...]
    batch_rows: int | None
    opset: int | None
    across_batch: tuple[str, ...] = ()


def read_spec(path: Path | str, name: str | None = None) -> ModelSpec:
    """Read the spec of an ONNX model from the file alone.

    Args:
        path: the ONNX file.
        name: what clients call the model; None takes the file's name without its ending.

    Raises:
        ModelRefused: the model cannot be served; the message says why, what was expected and what to do.
    """
    path = Path(path)
    return spec_of(read_onnx(path), model_name(path, name))


def model_name(path: Path, name: str | None = None) -> str:
    """The name that clients use: `name`, or the file's name without its ending.

    Raises:
        ModelRefused: empty, longer than 32 UTF-8 bytes, or not printable.
    """
    chosen = path.stem if name is None else name
    size = len(chosen.encode("utf-8", "surrogateescape"))
    if not 1 <= size <= NAME_BYTES_MAX or not chosen.isprintable():
        raise ModelRefused(
            f"{path}: the model's name {chosen!r} takes {size} bytes, expected 1 to {NAME_BYTES_MAX}"
            " printable UTF-8 bytes:"
            " give it another name"
        )
    return chosen


def spec_of(file: OnnxFile, name: str) -> ModelSpec:
    """The spec of a model that has been read. Raises ModelRefused as `read_spec` does."""
    path, graph = file.path, file.model.graph
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {tensor.values.name for tensor in graph.sparse_initializer}
    graph_input = _only(path, "input", [value for value in graph.input if value.name not in weights])
    graph_output = _only(path, "output", list(graph.output))
    _check_float32(path, "input", graph_input)
    _check_float32(path, "output", graph_output)
    input_dims = _known_dims(path, "input", graph_input.name, _dims(graph_input))
    output_dims = _checked_output_dims(file, graph_output)
    batch_rows = _batch_rows(path, input_dims, output_dims)
    input_row, output_row = _row(input_dims), _row(output_dims)
    return ModelSpec(
        name=name,
        path=path,
        sha256=file.sha256,
        # Text that is no UTF-8 arrives as bytes; shown as such it names nothing, and the backend refuses it.
        input_name=str(graph_input.name),
        output_name=str(graph_output.name),
        features=_count(path, "features", input_row, FEATURES_MAX),
        outputs=_count(path, "outputs", output_row, OUTPUTS_MAX),
        input_dims=input_row,
        output_dims=output_row,
        batch_rows=batch_rows,
        opset=_opset(file.model),
        across_batch=batch_spanning(file.model),
    )


def _only(path: Path, kind: str, values: list[ValueInfoProto]) -> ValueInfoProto:
    if len(values) == 1:
        return values[0]
    names = ", ".join(repr(value.name) for value in values) or "none"
    way_out = (
        "join them into one before the export, as columns of one float32 tensor"
        if kind == "input"
        else "keep the one to serve, with onnx.utils.extract_model(FILE, NEW_FILE, [INPUT], [OUTPUT])"
    )
    raise ModelRefused(f"{path}: has {len(values)} {kind}s ({names}), expected exactly one: {way_out}")


def _check_float32(path: Path, kind: str, value: ValueInfoProto) -> None:
    from onnx import TensorProto

    type_kind = value.type.WhichOneof("value")
    if type_kind != "tensor_type":
        raise ModelRefused(
            f"{path}: {kind} {value.name!r} is a {type_kind or 'value without a type'}, expected a float32"
            " tensor"
        )
    element_type = value.type.tensor_type.elem_type
    if element_type != TensorProto.FLOAT:
        dtype_names = {number: dtype_name for dtype_name, number in TensorProto.DataType.items()}
        raise ModelRefused(
            f"{path}: {kind} {value.name!r} is {dtype_names.get(element_type, f'of type {element_type}')},"
            " expected FLOAT"
            " (float32): the wire carries float32, so put a Cast inside the model at that end; what lies"
            " between may"
            " have any type"
        )


def _dims(value: ValueInfoProto) -> tuple[Dim, ...] | None:
    """The axes of a tensor; None where the file does not give its shape."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim
    )


def _checked_output_dims(file: OnnxFile, output: ValueInfoProto) -> tuple[Dim, ...]:
    """The output's axes, worked out from the graph where it does not state them; the graph is a valid one
    then."""
    from onnx.checker import ValidationError, check_model
    from onnx.shape_inference import InferenceError, infer_shapes

    dims = _dims(output)
    # The bytes, for out of the message both would make them anew.
    checked: ModelProto | bytes = file.content
    try:
        if dims is None or any(not isinstance(dim, int) for dim in dims[1:]):
            checked = infer_shapes(file.content, data_prop=True)
            dims = _dims(checked.graph.output[0])
        known = _known_dims(file.path, "output", output.name, dims)
        check_model(checked)
    except (InferenceError, ValidationError, ValueError) as error:  # ValueError: names that are no UTF-8
        raise ModelRefused(f"{file.path}: not a valid ONNX model: {error}") from error
    return known


def _known_dims(path: Path, kind: str, name: str, dims: tuple[Dim, ...] | None) -> tuple[Dim, ...]:
    """The axes, once every one but the first is known to be a size of at least 1."""
    if not dims:
        shape = "no shape" if dims is None else "no axis"
        raise ModelRefused(
            f"{path}: {kind} {name!r} has {shape}, expected [batch, ...]: export it with its shape"
        )
    sizes = [dim for dim in dims if isinstance(dim, int)]
    if any(size < 1 for size in sizes):
        raise ModelRefused(
            f"{path}: {kind} {name!r} has the shape {_shown(dims)}, expected sizes of at least 1: name the"
            " batch axis"
            " instead of giving it a size, and give every other axis its size"
        )
    unknown = [axis for axis, dim in enumerate(dims) if axis > 0 and not isinstance(dim, int)]
    if not unknown:
        return dims
    if isinstance(dims[0], int) and len(unknown) == 1:
        raise ModelRefused(
            f"{path}: {kind} {name!r} has the shape {_shown(dims)}: the axis of free size is axis"
            f" {unknown[0]}, expected the"
            " batch to be axis 0: transpose inside the model (for a PyTorch LSTM: batch_first=True)"
        )
    raise ModelRefused(
        f"{path}: {kind} {name!r} has the shape {_shown(dims)}, expected a size on every axis but the first:"
        " export it with"
        " those sizes fixed, or run python -m onnxruntime.tools.make_dynamic_shape_fixed --dim_param NAME"
        " --dim_value SIZE"
    )


def _batch_rows(path: Path, input_dims: tuple[Dim, ...], output_dims: tuple[Dim, ...]) -> int | None:
    """The batch that the file fixes, None where it leaves it free."""
    batch, answered = input_dims[0], output_dims[0]
    if isinstance(batch, int) and len(input_dims) == 1:
        raise ModelRefused(
            f"{path}: the input has the shape [{batch}], which has no batch axis, expected [batch, {batch}]:"
            " export it with one"
        )
    if isinstance(answered, int) and answered != batch:
        raise ModelRefused(
            f"{path}: the input has the shape {_shown(input_dims)} and the output {_shown(output_dims)}:"
            f" {answered} answered for"
            f" a batch of {_shown((batch,))[1:-1]}, expected the same first axis: was a batch size fixed"
            " during the export?"
            " Mark axis 0 of the input as free (dynamic_shapes or dynamic_axes in torch.onnx.export)"
        )
    return batch if isinstance(batch, int) else None


def _row(dims: tuple[Dim, ...]) -> tuple[int, ...]:
    return tuple(dim for dim in dims[1:] if isinstance(dim, int))


def _count(path: Path, what: str, dims: tuple[int, ...], limit: int) -> int:
    count = math.prod(dims)
    if count > limit:
        raise ModelRefused(
            f"{path}: {count:,} {what} per row, expected at most {limit:,}: one frame cannot carry more"
        )
    return count


def _opset(model: ModelProto) -> int | None:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def _shown(dims: tuple[Dim, ...]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"
