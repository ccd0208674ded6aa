"""The inputs and outputs of a graph as people are shown them: types, axes, and which columns of a row they
are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from sigd.models.onnx.columns import WHOLE_CALL, Columns
from sigd.models.onnx.signature import declared_dims, real_inputs, shown_dims, type_name

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

    from sigd.models.manifest import Tensor
    from sigd.models.spec import ModelSpec

_LABELS_TOLD = 8


class GraphTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output.

    Attributes:
        name: the graph's name for it.
        dtype: its own element type; the wire carries float32.
        axes: the batch among them as "N" where it is free.
        first_column, last_column: of the row, from 0; None where it is not served.
        labels: the class of each column; or, where `text`, the text that each number stands for.
        text: whether the graph answers with text.
        not_served: why it is not served; "" where it is.
    """

    name: str
    dtype: str
    axes: str
    first_column: int | None = None
    last_column: int | None = None
    labels: tuple[str, ...] = ()
    text: bool = False
    not_served: str = ""

    @classmethod
    def of(cls, one: Columns, batch_rows: int | None) -> GraphTensor:
        """A tensor that is served."""
        axes: list[int | str | None] = list(one.dims)
        if one.batch_axis != WHOLE_CALL:
            axes.insert(one.batch_axis, "N" if batch_rows is None else batch_rows)
        return cls(
            name=one.name,
            dtype=one.dtype,
            axes=shown_dims(tuple(axes)),
            first_column=one.first,
            last_column=one.first + one.width - 1,
            labels=one.labels,
            text=one.text,
        )

    def shape_told(self) -> str:
        """Type, axes and classes."""
        return self.told("column").partition(" ")[2]

    def told(self, column: str) -> str:
        """One line for people; `column` is what a column of the row is called, "feature" or "output"."""
        line = f"{self.name} {self.dtype} {self.axes}"
        if self.first_column is None:
            return f"{line}, not served: {self.not_served}" if self.not_served else line
        if self.first_column == self.last_column:
            line += f", {column} {self.first_column}"
        else:
            line += f", {column}s {self.first_column} to {self.last_column}"
        if not self.labels:
            return line
        shown = [f"{number} = {label}" if self.text else label for number, label in enumerate(self.labels)]
        more = ["..."] if len(shown) > _LABELS_TOLD else []
        return f"{line} ({', '.join(shown[:_LABELS_TOLD] + more)})"


def served_tensors(spec: ModelSpec) -> tuple[tuple[GraphTensor, ...], tuple[GraphTensor, ...]]:
    """Inputs and outputs of a model that can be served."""
    inputs = tuple(GraphTensor.of(one, spec.batch_rows) for one in spec.input_columns)
    outputs = tuple(GraphTensor.of(one, spec.batch_rows) for one in spec.output_columns)
    left_out = tuple(
        GraphTensor(name=name, dtype="", axes="", not_served=f"it {reason}") for name, reason in spec.left_out
    )
    return inputs, outputs + left_out


def declared_tensors(model: ModelProto) -> tuple[tuple[GraphTensor, ...], tuple[GraphTensor, ...]]:
    """Inputs and outputs of any model, as its file declares them."""
    return tuple(map(_declared, real_inputs(model))), tuple(map(_declared, model.graph.output))


def engine_tensors(
    columns: Sequence[Columns], tensor: Tensor, batch_rows: int | None
) -> tuple[GraphTensor, ...]:
    """Inputs or outputs of an engine: those of its model, or the one that it has."""
    served = columns or (Columns(tensor.name, "float32", tensor.row_dims),)
    return tuple(GraphTensor.of(one, batch_rows) for one in served)


def _declared(value: ValueInfoProto) -> GraphTensor:
    if value.type.WhichOneof("value") != "tensor_type":
        return GraphTensor(name=str(value.name), dtype=value.type.WhichOneof("value") or "unknown", axes="")
    dims = declared_dims(value)
    dtype = type_name(value.type.tensor_type.elem_type)
    return GraphTensor(name=str(value.name), dtype=dtype, axes="[...]" if dims is None else shown_dims(dims))
