"""What a model is, read from its own file: names, shapes, batch axis and digest.

A client sends and gets flat rows of float32. Inputs and outputs of more than two axes are flattened in C
order; an output of one axis, [N], is one output per row. A model of several inputs or outputs, or of other
types, is wrapped when it is loaded (`sigd.models.onnx.flatten`), so that every backend sees one float32
tensor at either end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sigd.models.carried_state import CarriedState, carried_state
from sigd.models.errors import ModelRefused
from sigd.models.history import Window, window_of
from sigd.models.onnx.batch_axis import batch_spanning
from sigd.models.onnx.columns import Columns, column_name, row_width
from sigd.models.onnx.file import OnnxFile, read_onnx
from sigd.models.onnx.flatten import ROW_INPUT, ROW_OUTPUT, flatten, input_is_flat, output_is_flat
from sigd.models.onnx.missing import reads_missing
from sigd.models.onnx.signature import Dim, axis_names, declared_dims, read_signature, real_inputs
from sigd.models.onnx.trees import NO_TREES, Trees, count_trees
from sigd.models.reading import AS_IT_IS, HistoryOptions, Missing, ReadOptions

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

FEATURES_MAX = 16_373
"""The most features that one request frame carries: its length is a 16-bit count of bytes."""
OUTPUTS_MAX = 16_370
"""The most outputs that one response frame carries."""
_WINDOW_AXES: Final = 2
_IR_WITHOUT_WEIGHTS_AMONG_INPUTS: Final = 4
_FEWER_VALUES: Final = (
    "let the model itself cut it down before the export: to the best classes (ArgMax, TopK), the last step,"
    " or a slice"
)
_FEWER_OUTPUTS: Final = (
    "keep those that the client needs, with onnx.utils.extract_model(FILE, NEW_FILE, [INPUT], [OUTPUT])"
)
NAME_BYTES_MAX = 32
"""The most UTF-8 bytes of a model's name: the size of the field that carries it to clients."""


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
        input_columns: which columns of a request are which input of the graph.
        output_columns: which columns of an answer are which output of the graph.
        left_out: outputs of the graph that are not served: name and why.
        wrapped: whether the file's graph is wrapped to read and answer rows; then `input_name`, `input_dims`
            and the same of the output are the wrapped graph's.
        reads_missing: how the graph itself reads NaN as a missing value; "" where it does not.
        takes_nan: whether NaN in a request is a missing value; else it is BAD_INPUT.
        sizes: that were given for axes which the file leaves free.
        trees: of an ONNX file's ensembles of trees; none for an engine.
        sizes_hidden: whether the wrapped graph hides the sizes of its inputs, see `flatten`.
        window: what it looks at, where the history of instruments may be kept for clients; else None.
        state: what it carries from step to step, where that is kept for clients; else None. `features` and
            `outputs` are the model's own all the same, states included.
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
    input_columns: tuple[Columns, ...] = ()
    output_columns: tuple[Columns, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    wrapped: bool = False
    reads_missing: str = ""
    takes_nan: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    trees: Trees = NO_TREES
    sizes_hidden: bool = False
    window: Window | None = None
    state: CarriedState | None = None

    @property
    def request_values(self) -> int:
        """Values of a request by a client: of a step, where a state is kept."""
        return self.features if self.state is None else self.state.features

    @property
    def answer_values(self) -> int:
        """Values of an answer to a client."""
        return self.outputs if self.state is None else self.state.outputs

    def feature_name(self, column: int) -> str:
        """What a column of a request is called, for example "book[3]"."""
        return column_name(self.input_columns, column)


def read_spec(path: Path | str, name: str | None = None, options: ReadOptions = AS_IT_IS) -> ModelSpec:
    """Read the spec of an ONNX model from the file alone.

    Args:
        path: the ONNX file.
        name: what clients call the model; None takes the file's name without its ending.
        options: what the file leaves open.

    Raises:
        ModelRefused: the model cannot be served; the message says why, what was expected and what to do.
    """
    path = Path(path)
    return spec_of(read_onnx(path), model_name(path, name), options)


def read_served(spec: ModelSpec) -> OnnxFile:
    """The model as the backends run it, of the bytes that the spec was read from.

    Raises:
        ModelRefused: the file cannot be read, or has changed since.
    """
    return as_served(read_onnx(spec.path, spec.sha256), spec)


def as_served(file: OnnxFile, spec: ModelSpec) -> OnnxFile:
    """A model that has been read, as the backends run it; the file's own message is wrapped in place."""
    if not spec.wrapped:
        return file
    flatten(file.model, spec.input_columns, spec.output_columns, sizes_hidden=spec.sizes_hidden)
    return OnnxFile(file.path, file.model.SerializeToString(), file.model, file.sha256)


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
            " give it another name (--name, or name in the configuration)"
        )
    return chosen


def spec_of(file: OnnxFile, name: str, options: ReadOptions = AS_IT_IS) -> ModelSpec:
    """The spec of a model that has been read. Raises ModelRefused as `read_spec` does."""
    sizes = options.sizes
    if options.sizes_of_another:
        known = axis_names(file.model)
        sizes = {key: size for key, size in sizes.items() if key in known}
    # One request carries one step of a history, however long the window is.
    spec = _shapes_of(file, name, sizes, whole=options.history is None)
    how = reads_missing(file.model, [one.name for one in spec.input_columns])
    spec = replace(spec, reads_missing=how, sizes=sizes, trees=count_trees(file.model))
    return with_history(with_missing(spec, options.missing), options.history)


def with_missing(spec: ModelSpec, missing: Missing) -> ModelSpec:
    """The same model, with NaN being what `missing` says."""
    taken = missing is Missing.NAN or (missing is Missing.AUTO and bool(spec.reads_missing))
    return replace(spec, takes_nan=taken)


def with_history(spec: ModelSpec, history: HistoryOptions | None) -> ModelSpec:
    """The same model, with the history of instruments kept for clients where `history` says so.

    Raises:
        ModelRefused: it neither looks at a window nor carries a state.
    """
    if history is None or spec.window is not None or spec.state is not None:
        return spec
    where = str(spec.path)
    state = carried_state(
        where, spec.input_columns, spec.output_columns, history.states, history.warm_up_steps
    )
    if state is not None:
        _features(spec.path, state.step, whole=True)
        _outputs(spec.path, state.answer, whole=True)
        return replace(spec, state=state)
    if history.warm_up_steps:
        raise ModelRefused(
            f"{where}: carries no state that was found, and warm_up_steps is for one: leave it out, or name"
            ' the states in the history table: states = {INPUT = "OUTPUT"}'
        )
    _outputs(spec.path, spec.output_columns, whole=True)
    dims = spec.input_columns[0].dims if len(spec.input_columns) == 1 else spec.input_dims
    return replace(spec, window=window_of(where, dims, history))


def _shapes_of(file: OnnxFile, name: str, sizes: Mapping[str, int], *, whole: bool) -> ModelSpec:
    inputs, outputs = real_inputs(file.model), list(file.model.graph.output)
    if not sizes and _is_plain(file.model, inputs, outputs):
        try:
            return _plain_spec(file, name, inputs[0], outputs[0], whole)
        except _ShapeUnknown:
            # A run finds out what the declarations do not tell.
            pass
    return _wrapped_spec(file, name, sizes, whole)


class _ShapeUnknown(Exception):
    """The declared shapes do not say how wide a row is, or which axis is the batch."""


def _is_plain(model: ModelProto, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> bool:
    """Whether one float32 tensor is read and one is answered, by operators whose exporters declare the right
    shapes: those of trees do not."""
    from onnx import TensorProto

    return (
        len(inputs) == len(outputs) == 1
        and all(
            value.type.WhichOneof("value") == "tensor_type"
            and value.type.tensor_type.elem_type == TensorProto.FLOAT
            for value in (*inputs, *outputs)
        )
        and all(node.domain != "ai.onnx.ml" for node in model.graph.node)
    )


def _plain_spec(
    file: OnnxFile, name: str, graph_input: ValueInfoProto, graph_output: ValueInfoProto, whole: bool
) -> ModelSpec:
    """The spec of a graph that is served as it is."""
    path = file.path
    input_dims = _known_dims(declared_dims(graph_input))
    output_dims = _checked_output_dims(file, graph_output)
    batch, answered = input_dims[0], output_dims[0]
    if (isinstance(batch, int) and len(input_dims) == 1) or (isinstance(answered, int) and answered != batch):
        raise _ShapeUnknown
    input_row, output_row = _row(input_dims), _row(output_dims)
    # Text that is no UTF-8 arrives as bytes; shown as such it names nothing, and the backend refuses it.
    input_name, output_name = str(graph_input.name), str(graph_output.name)
    return ModelSpec(
        name=name,
        path=path,
        sha256=file.sha256,
        input_name=input_name,
        output_name=output_name,
        features=_features(path, (Columns(input_name, "float32", input_row),), whole),
        outputs=_outputs(path, (Columns(output_name, "float32", output_row),), whole),
        input_dims=input_row,
        output_dims=output_row,
        batch_rows=batch if isinstance(batch, int) else None,
        opset=_opset(file.model),
        across_batch=batch_spanning(file.model),
        input_columns=(Columns(input_name, "float32", input_row),),
        output_columns=(Columns(output_name, "float32", output_row),),
    )


def _wrapped_spec(file: OnnxFile, name: str, sizes: Mapping[str, int], whole: bool) -> ModelSpec:
    """The spec of a graph that is wrapped, on the sides where it must be."""
    _check_valid(file)
    signature = read_signature(file, sizes, lambda inputs: _features(file.path, inputs, whole))
    inputs, outputs = signature.inputs, signature.outputs
    features, answers = row_width(inputs), _outputs(file.path, outputs, whole)
    read_in_place, answered_in_place = input_is_flat(inputs), output_is_flat(outputs)
    return ModelSpec(
        name=name,
        path=file.path,
        sha256=file.sha256,
        input_name=inputs[0].name if read_in_place else ROW_INPUT,
        output_name=outputs[0].source if answered_in_place else ROW_OUTPUT,
        features=features,
        outputs=answers,
        input_dims=inputs[0].dims if read_in_place else (features,),
        output_dims=outputs[0].dims if answered_in_place else (answers,),
        batch_rows=signature.batch_rows,
        opset=_opset(file.model),
        across_batch=batch_spanning(file.model) if all(one.batch_axis == 0 for one in inputs) else (),
        input_columns=inputs,
        output_columns=outputs,
        left_out=signature.left_out,
        sizes_hidden=signature.sizes_hidden,
        wrapped=True,
    )


def _checked_output_dims(file: OnnxFile, output: ValueInfoProto) -> tuple[Dim, ...]:
    """The output's axes, worked out from the graph where it does not state them; the graph is a valid one
    then."""
    from onnx.checker import ValidationError, check_model
    from onnx.shape_inference import InferenceError, infer_shapes

    dims = declared_dims(output)
    # The bytes, for out of the message both would make them anew.
    content = _content_to_check(file)
    checked: ModelProto | bytes = content
    try:
        if dims is None or any(not isinstance(dim, int) for dim in dims[1:]):
            checked = infer_shapes(content, data_prop=True)
            dims = declared_dims(checked.graph.output[0])
        known = _known_dims(dims)
        check_model(checked)
    except (InferenceError, ValidationError, ValueError) as error:  # ValueError: names that are no UTF-8
        raise ModelRefused(f"{file.path}: {_invalid(error)}") from error
    return known


def _invalid(error: Exception) -> str:
    """What the checker found. A file that is merely newer than the package onnx is no broken one."""
    from onnx import IR_VERSION, __version__

    newer = re.search(r"ir_version (?P<found>\d+) is higher", str(error))
    if newer is not None:
        return (
            f"has the IR version {newer['found']}, the package onnx {__version__} here knows {IR_VERSION} at"
            " most: upgrade it (pip install --upgrade onnx), or export the model with an older one"
            f" (model.ir_version = {IR_VERSION} before onnx.save)"
        )
    return f"not a valid ONNX model: {error}"


def _content_to_check(file: OnnxFile) -> bytes:
    """The model for the checker. Before IR version 4 it wants weights among the inputs, the runtimes do
    not."""
    from onnx import ModelProto

    if file.model.ir_version >= _IR_WITHOUT_WEIGHTS_AMONG_INPUTS:
        return file.content
    model = ModelProto()
    model.CopyFrom(file.model)
    model.ir_version = _IR_WITHOUT_WEIGHTS_AMONG_INPUTS
    return bytes(model.SerializeToString())


def _check_valid(file: OnnxFile) -> None:
    """Raise ModelRefused where the file is no valid graph: a runtime that runs it must not meet one."""
    from onnx import ModelProto
    from onnx.checker import ValidationError, check_model

    content = _content_to_check(file)
    silent = [value for value in file.model.graph.output if declared_dims(value) is None]
    if silent:
        # The checker wants a shape, the runtime does not.
        model = ModelProto.FromString(content)
        for value in model.graph.output:
            if value.type.WhichOneof("value") == "tensor_type":
                value.type.tensor_type.shape.SetInParent()
        content = model.SerializeToString()
    try:
        check_model(content)
    except (ValidationError, ValueError) as error:
        raise ModelRefused(f"{file.path}: {_invalid(error)}") from error


def _known_dims(dims: tuple[Dim, ...] | None) -> tuple[Dim, ...]:
    """The axes, where every one but the first is known to be a size of at least 1."""
    if not dims or any(isinstance(dim, int) and dim < 1 for dim in dims):
        raise _ShapeUnknown
    if any(not isinstance(dim, int) for dim in dims[1:]):
        raise _ShapeUnknown
    return dims


def _row(dims: tuple[Dim, ...]) -> tuple[int, ...]:
    return tuple(dim for dim in dims[1:] if isinstance(dim, int))


def _features(path: Path, inputs: tuple[Columns, ...], whole: bool) -> int:
    """Features per row; refused where they are sent whole and a frame cannot carry them, with what it
    could."""
    count = row_width(inputs)
    if whole and count > FEATURES_MAX:
        raise ModelRefused(
            f"{path}: {count:,} features per row, expected at most {FEATURES_MAX:,}: one frame cannot carry"
            " more;"
            f" {_what_fits(inputs, count)}"
        )
    return count


def _what_fits(inputs: tuple[Columns, ...], count: int) -> str:
    """What to make smaller, and how small."""
    largest = max(inputs, key=lambda one: one.width)
    longest = max(largest.dims)
    fits = (FEATURES_MAX - (count - largest.width)) // (largest.width // longest)
    if fits < 1:
        return "send fewer inputs"
    what = "steps of history or levels of the book" if len(largest.dims) > 1 else "columns"
    return (
        f"export it with at most {fits:,} in place of {longest:,} on axis {largest.dims.index(longest) + 1}"
        " of input"
        f" {largest.name!r} (fewer {what}){_one_by_one(inputs)}"
    )


def _one_by_one(inputs: tuple[Columns, ...]) -> str:
    """What else to do where the row is a window of steps."""
    if len(inputs) != 1 or len(inputs[0].dims) != _WINDOW_AXES:
        return ""
    return ", or have clients send one step at a time: sigd serve --history-instruments N"


def _outputs(path: Path, outputs: tuple[Columns, ...], whole: bool) -> int:
    count = row_width(outputs)
    if whole and count > OUTPUTS_MAX:
        one_is_too_wide = max(one.width for one in outputs) > OUTPUTS_MAX
        raise ModelRefused(
            f"{path}: {count:,} outputs per row, expected at most {OUTPUTS_MAX:,}: one frame cannot carry"
            f" more; {_FEWER_VALUES if one_is_too_wide else _FEWER_OUTPUTS}"
        )
    return count


def _opset(model: ModelProto) -> int | None:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
