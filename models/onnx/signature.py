"""What a graph reads and answers, as columns of a flat row: from its declarations, and from a run where they
lie or are silent.

One call of the model runs as many rows as its batch axis has places. Where it has no such axis, the whole
call is one row. Which of the two holds, and how wide each output is, is found by running it: exporters
declare wrong shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sigd.models.errors import ModelRefused
from sigd.models.onnx.columns import FLOATS, WHOLE_CALL, Columns, integer_range, side_by_side
from sigd.models.onnx.labels import class_labels, text_labels
from sigd.models.onnx.lookups import table_rows
from sigd.models.onnx.trial import Answer, CannotRun, ShapesRefused, Trial

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

    from sigd.models.onnx.file import OnnxFile

Dim = int | str | None
"""One axis: its size, the name that stands for it, or None where the file says nothing."""
_BATCHES_TRIED: Final = (2, 3)


@dataclass(frozen=True, slots=True)
class Signature:
    """What is served of a graph.

    Attributes:
        inputs: all of them, side by side.
        outputs: those that are served, side by side.
        sizes_hidden: whether the sizes of inputs are to be hidden from ONNX Runtime, see `flatten`.
        left_out: the others: name and why.
        batch_rows: None where any batch runs; k where the graph runs k rows at a time.
    """

    inputs: tuple[Columns, ...]
    outputs: tuple[Columns, ...]
    left_out: tuple[tuple[str, str], ...]
    batch_rows: int | None
    sizes_hidden: bool = False


@dataclass(frozen=True, slots=True)
class _Declared:
    """An input as the file declares it."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]


def read_signature(
    file: OnnxFile, sizes: Mapping[str, int], check_width: Callable[[tuple[Columns, ...]], object]
) -> Signature:
    """The signature of a graph of any inputs and outputs.

    Args:
        file: the model.
        sizes: of free axes, by the axis's name or as "INPUT.AXIS".
        check_width: raises where the inputs make too long a row; called before anything is run.

    Raises:
        ModelRefused: it cannot be served; the message says why and what to do.
    """
    inputs = tuple(_declared(file.path, value) for value in real_inputs(file.model))
    if not inputs:
        raise ModelRefused(f"{file.path}: has no input, expected at least one: a constant needs no model")
    fixed = _Sizes(file.path, inputs, sizes)
    layouts = _layouts(file.path, inputs, fixed)
    refusal: ModelRefused | None = None
    for columns, batch_rows in layouts:
        inputs_placed = side_by_side(columns)
        check_width(inputs_placed)
        try:
            return _tried(file, inputs_placed, batch_rows)
        except _NoRows as error:
            refusal = refusal or ModelRefused(f"{error}{_whole_call_hint(inputs, columns, fixed)}")
        except ModelRefused as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


class _NoRows(ModelRefused):
    """The outputs have no row for each row of the inputs."""


def _whole_call_hint(inputs: tuple[_Declared, ...], columns: list[Columns], fixed: _Sizes) -> str:
    """How to serve the whole call as one row, where the axis that was taken for the batch is none."""
    for one, placed in zip(inputs, columns, strict=True):
        axis = placed.batch_axis
        if axis == WHOLE_CALL:
            return ""
        if axis > 0:
            return (
                f": axis {axis} of input {one.name!r} is no batch: give it its size with --dim"
                f" {_key(one, axis)}=SIZE"
            )
        if not isinstance(fixed.of(one, axis, one.dims[axis]), int):
            return f"; where the whole call is one row, say so with --dim {_key(one, axis)}=1"
    return ""


def real_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs without the weights that old files list among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in weights]


def axis_names(model: ModelProto) -> frozenset[str]:
    """All that the axes of the inputs may be called where sizes are given: NAME, and INPUT.AXIS."""
    found: set[str] = set()
    for value in real_inputs(model):
        for axis, dim in enumerate(declared_dims(value) or ()):
            found.update(_names(str(value.name), axis, dim))
    return frozenset(found)


def declared_dims(value: ValueInfoProto) -> tuple[Dim, ...] | None:
    """The axes of a tensor, free ones as their name or None (some exporters write -1); None where there is no
    shape."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        (dim.dim_value if dim.dim_value != -1 else None)
        if dim.HasField("dim_value")
        else (dim.dim_param if dim.dim_param not in ("", "?") else None)
        for dim in tensor.shape.dim
    )


def shown_dims(dims: tuple[Dim, ...]) -> str:
    """As in [N, 50, 16]; a free axis without a name is a question mark.

    >>> shown_dims(("N", None, 16))
    '[N, ?, 16]'
    """
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


def type_name(element_type: int) -> str:
    """NumPy's name for an element type of ONNX.

    >>> type_name(1), type_name(11), type_name(7), type_name(8)
    ('float32', 'float64', 'int64', 'string')
    """
    from onnx import TensorProto

    names = {number: name for name, number in TensorProto.DataType.items()}
    name = str(names.get(element_type, f"type {element_type}")).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _declared(path: Path, value: ValueInfoProto) -> _Declared:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelRefused(
            f"{path}: input {value.name!r} is a {kind or 'value without a type'}, expected a tensor: give the"
            " model tensors"
            " before the export"
        )
    dtype = type_name(value.type.tensor_type.elem_type)
    if dtype == "string":
        raise ModelRefused(f"{path}: {strings_refused(value.name)}")
    if dtype not in FLOATS and integer_range(dtype) is None:
        raise ModelRefused(
            f"{path}: input {value.name!r} is {dtype}, expected floats, integers or bool: convert it inside"
            " the model"
        )
    dims = declared_dims(value)
    if dims is None:
        raise ModelRefused(
            f"{path}: input {value.name!r} has no shape, expected [batch, ...]: export it with its shape"
        )
    if any(isinstance(dim, int) and dim < 1 for dim in dims):
        raise ModelRefused(
            f"{path}: input {value.name!r} has the shape {shown_dims(dims)}, expected sizes of at least 1:"
            " name the batch axis"
            " instead of giving it a size, and give every other axis its size"
        )
    return _Declared(str(value.name), dtype, dims)


def strings_refused(name: str) -> str:
    """Why an input of strings is not served, and what is."""
    return (
        f"input {name!r} holds strings, which the wire does not carry: number them before the training"
        f" (codes = {{text: number for number, text in enumerate(sorted(set(column)))}}), train on the"
        " numbers, and declare the"
        f" input as Int64TensorType([None, 1]) in the export; the client then sends the number"
    )


class _Sizes:
    """The sizes that were given for free axes, and which of them are used."""

    def __init__(self, path: Path, inputs: tuple[_Declared, ...], sizes: Mapping[str, int]) -> None:
        self.batch_is_fixed = False
        self._sizes = sizes
        known = {key for one in inputs for axis, dim in enumerate(one.dims) for key in _keys(one, axis, dim)}
        for key in sizes:
            if key not in known:
                free = sorted(
                    {
                        _keys(one, axis, dim)[0]
                        for one in inputs
                        for axis, dim in enumerate(one.dims)
                        if not isinstance(dim, int)
                    }
                )
                raise ModelRefused(
                    f"{path}: --dim {key}={sizes[key]} names no axis, expected one of"
                    f" {', '.join(free) or 'none: all have a size'}"
                )
        for one in inputs:
            for axis, dim in enumerate(one.dims):
                size = self.of(one, axis, dim)
                if isinstance(dim, int) and size != dim:
                    raise ModelRefused(
                        f"{path}: --dim gives axis {axis} of input {one.name!r} the size {size}, the file"
                        f" fixes it to {dim}"
                    )
                if axis == 0 and any(key in sizes for key in _keys(one, axis, dim)):
                    self.batch_is_fixed = True

    def given(self) -> Mapping[str, int]:
        """All of them."""
        return self._sizes

    def of(self, one: _Declared, axis: int, dim: Dim) -> Dim:
        """The size that was given for an axis, or what the file says."""
        return next((self._sizes[key] for key in _keys(one, axis, dim) if key in self._sizes), dim)


def _keys(one: _Declared, axis: int, dim: Dim) -> tuple[str, ...]:
    """What an axis may be called, its own name first."""
    return _names(one.name, axis, dim)


def _names(name: str, axis: int, dim: Dim) -> tuple[str, ...]:
    place = f"{name}.{axis}"
    return (dim, place) if isinstance(dim, str) else (place,)


_Layout = tuple[list[Columns], int | None]


def _layouts(path: Path, inputs: tuple[_Declared, ...], fixed: _Sizes) -> list[_Layout]:
    """How the inputs may be read as rows, the likeliest first: columns, and the batch where the file fixes
    it."""
    dims = [tuple(fixed.of(one, axis, dim) for axis, dim in enumerate(one.dims)) for one in inputs]
    free = [
        (one, axis)
        for one, axes in zip(inputs, dims, strict=True)
        for axis, dim in enumerate(axes)
        if not isinstance(dim, int)
    ]
    whole: _Layout = ([_columns(one, axes, WHOLE_CALL) for one, axes in zip(inputs, dims, strict=True)], 1)
    if not free:
        leading = {axes[0] if len(axes) > 1 else None for axes in dims}
        batch = leading.pop()
        if leading or batch is None or fixed.batch_is_fixed:
            return [whole]
        assert isinstance(batch, int)
        rows: _Layout = ([_columns(one, axes, 0) for one, axes in zip(inputs, dims, strict=True)], batch)
        return [rows, whole] if batch == 1 else [rows]
    axes_of = None if fixed.batch_is_fixed else _batch_axes(dims)
    if axes_of is not None and None in axes_of:
        without = inputs[axes_of.index(None)]
        ones = {_key(one, axis) for one, axis in free if axes_of[inputs.index(one)] == axis}
        raise ModelRefused(_no_batch(path, without, fixed.given(), ones, free))
    others = [(one, axis) for one, axis in free if axes_of is None or axes_of[inputs.index(one)] != axis]
    if others or axes_of is None:
        raise ModelRefused(_free_axes(path, fixed.given(), others))
    return [
        (
            [
                _columns(one, axes, axis)
                for one, axes, axis in zip(inputs, dims, axes_of, strict=True)
                if axis is not None
            ],
            None,
        )
    ]


def _batch_axes(dims: list[tuple[Dim, ...]]) -> list[int | None] | None:
    """For each input the axis that is the batch, None where it has none; None for all where no axis can be
    it."""
    leading = [axes[0] for axes in dims if axes and not isinstance(axes[0], int)]
    if leading:
        names = {name for name in leading if name is not None}
        return [_batch_axis(axes, names) for axes in dims]
    free = {(dim, axis) for axes in dims for axis, dim in enumerate(axes) if not isinstance(dim, int)}
    if len({dim for dim, _ in free}) > 1:
        return None
    return [next((axis for axis, dim in enumerate(axes) if not isinstance(dim, int)), None) for axes in dims]


def _batch_axis(axes: tuple[Dim, ...], names: set[str]) -> int | None:
    """The batch axis of one input, where that of others is in front and called one of `names`."""
    free = [axis for axis, dim in enumerate(axes) if not isinstance(dim, int)]
    if free and free[0] == 0:
        return 0
    named = next((axis for axis in free if axes[axis] in names), None)
    if named is None and len(free) == 1 and axes[free[0]] is None:
        return free[0]
    return named


def _no_batch(
    path: Path,
    without: _Declared,
    given: Mapping[str, int],
    ones: Collection[str],
    free: list[tuple[_Declared, int]],
) -> str:
    """How to serve the whole call as one row, where one of the inputs has no batch axis. `ones` are the axes
    that would be the batch."""
    keys = [_key(one, axis) for one, axis in free]
    sizes: dict[str, int | str] = {**given, **{key: 1 if key in ones else "SIZE" for key in keys}}
    return (
        f"{path}: input {without.name!r} has the shape {shown_dims(without.dims)}, which has no batch axis,"
        f" while others have one: give every free axis its size, and each call is one row: {_options(sizes)}"
    )


def _options(sizes: Mapping[str, int | str]) -> str:
    """As on the command line."""
    return " ".join(f"--dim {key}={size}" for key, size in sizes.items())


def _key(one: _Declared, axis: int) -> str:
    """What --dim calls an axis."""
    return _keys(one, axis, one.dims[axis])[0]


def _free_axes(path: Path, given: Mapping[str, int], free: list[tuple[_Declared, int]]) -> str:
    """How to give these axes their sizes, besides those that have been given."""
    shapes = " and ".join(
        dict.fromkeys(f"input {one.name!r} has the shape {shown_dims(one.dims)}" for one, _ in free)
    )
    sizes: dict[str, int | str] = {**given, **{_key(one, axis): "SIZE" for one, axis in free}}
    table = ", ".join(f'"{key}" = {size}' for key, size in sizes.items())
    return (
        f"{path}: {shapes}, expected a size on every axis but the batch: give it with"
        f" {_options(sizes)}, or in the configuration dims = {{{table}}}"
    )


def _columns(one: _Declared, dims: tuple[Dim, ...], batch_axis: int) -> Columns:
    own = tuple(dim for axis, dim in enumerate(dims) if axis != batch_axis and isinstance(dim, int))
    return Columns(one.name, one.dtype, own, batch_axis)


def _tried(file: OnnxFile, inputs: tuple[Columns, ...], batch_rows: int | None) -> Signature:
    """What a run of that layout tells of the outputs."""
    whole = inputs[0].batch_axis == WHOLE_CALL
    sizes_hidden = False
    try:
        trial = Trial(file, inputs)
    except ShapesRefused:
        trial, sizes_hidden = Trial(file, inputs, sizes_hidden=True), True
    if batch_rows is None:
        try:
            answers = [trial.run(rows) for rows in _BATCHES_TRIED]
            rows_of = list(_BATCHES_TRIED)
        except CannotRun as error:
            try:
                answers, rows_of, batch_rows = [trial.run(1)], [1], 1
            except CannotRun:
                raise ModelRefused(f"{file.path}: {error}{_hint(file, inputs)}") from error
    else:
        try:
            answers, rows_of = [trial.run(batch_rows)], [batch_rows]
        except CannotRun as error:
            raise ModelRefused(f"{file.path}: {error}{_hint(file, inputs)}") from error
    served: list[Columns] = []
    left_out: list[tuple[str, str]] = []
    for number, name in enumerate(trial.outputs):
        shapes = [answer[number] for answer in answers]
        found = _output(file.model, trial.served_as[number], name, shapes, [WHOLE_CALL] if whole else rows_of)
        if isinstance(found, Columns):
            served.append(found)
        else:
            left_out.append((name, found))
    if not served:
        reasons = "; ".join(f"output {name!r} {reason}" for name, reason in left_out) or "it has no output"
        raise _NoRows(f"{file.path}: {reasons}, expected an output with one row for each row of the input")
    numbered = tuple(
        one if one.integers is None else replace(one, table=table_rows(file.model, one.name))
        for one in inputs
    )
    return Signature(numbered, side_by_side(served), tuple(left_out), batch_rows, sizes_hidden)


def _hint(file: OnnxFile, inputs: tuple[Columns, ...]) -> str:
    """What to change in a model that fails on rows of zeros and of ones."""
    if not any(_fails_on_unknown(node) for node in file.model.graph.node):
        return _settings_hint(file.path, inputs)
    return (
        "; OneHotEncoder fails on every category that was not in the training, and a row with any must be"
        " answered: fit it with OneHotEncoder(handle_unknown='ignore') before the export"
    )


def _fails_on_unknown(node: NodeProto) -> bool:
    return node.op_type == "OneHotEncoder" and any(
        each.name == "zeros" and each.i == 0 for each in node.attribute
    )


def _settings_hint(path: Path, inputs: tuple[Columns, ...]) -> str:
    """How to give a single integer its value in the file, where other values than the right one fail."""
    single = next((one for one in inputs if one.integers is not None and not one.dims), None)
    if single is None:
        return ""
    return (
        f"; where input {single.name!r} is a setting (a rate, a mode), fix it in a copy of the file:"
        f" python3 -c \"import numpy, onnx; m = onnx.load('{path}');"
        f" m.graph.initializer.append(onnx.numpy_helper.from_array(numpy.array(VALUE, '{single.dtype}'),"
        f" '{single.name}')); onnx.save(m, 'fixed.onnx')\""
    )


def _output(
    model: ModelProto, tensor: str, name: str, answers: list[Answer], rows: list[int]
) -> Columns | str:
    """The columns of an output; or why it is not served."""
    first = answers[0]
    dtype = first.dtype
    labels = class_labels(model)
    text = dtype == "string"
    if text:
        labels = text_labels(model, tensor)
        if not labels:
            return "holds strings, and the graph does not say which there can be"
    elif dtype not in FLOATS and integer_range(dtype) is None:
        return f"is {dtype}, expected floats, integers, bool or labels"
    if rows == [WHOLE_CALL]:
        batch_axis, dims = WHOLE_CALL, first.shape
    else:
        axis = _axis_of_rows([answer.shape for answer in answers], rows)
        if axis is None:
            shapes = " and ".join(str(list(answer.shape)) for answer in answers)
            return f"has the shape {shapes} for a batch of {' and '.join(map(str, rows))}"
        batch_axis, dims = axis, tuple(size for place, size in enumerate(first.shape) if place != axis)
    if 0 in dims:
        return f"has the shape {list(first.shape)}, which holds nothing"
    columns = Columns(name, dtype, dims, batch_axis, tensor="" if tensor == name else tensor, text=text)
    of_classes = text or (len(labels) > 1 and columns.width == len(labels) and dtype in FLOATS)
    return replace(columns, labels=labels) if of_classes else columns


def _axis_of_rows(shapes: list[tuple[int, ...]], rows: list[int]) -> int | None:
    """The axis that has one place for each row, in front where that is possible."""
    if len({len(shape) for shape in shapes}) > 1:
        return None
    for axis in range(len(shapes[0])):
        others = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
        if [shape[axis] for shape in shapes] == rows and len(others) == 1:
            return axis
        if len(rows) == 1:
            return None
    return None
