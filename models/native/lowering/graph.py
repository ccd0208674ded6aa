"""What the rules that lower an ONNX graph have in common: values, constants, and how a rule is found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sigd.models.errors import ModelRefused
from sigd.models.native.plan import Function, Kind, Op, Plan

if TYPE_CHECKING:
    from onnx import NodeProto

Array = npt.NDArray[Any]
WIDTH_MAX: Final = 1 << 22
"""PLAN_WIDTH_MAX."""


class NotCovered(ModelRefused):
    """The native kernels do not cover an operation of the model.

    Attributes:
        operation: its name in ONNX.
    """

    def __init__(self, operation: str, message: str) -> None:
        super().__init__(message)
        self.operation = operation


@dataclass(slots=True)
class Value:
    """A tensor that depends on the row.

    Attributes:
        buffer: where its floats are, for one row.
        dims: its axes without the batch.
        batch_axis: where among its axes the batch stands.
        producer: the operation that writes it, where a later one may become part of it.
        whole: whether the graph has integers here, which are exact as the floats that they are sent as.
    """

    buffer: int
    dims: tuple[int, ...]
    batch_axis: int = 0
    producer: Op | None = None
    whole: bool = False

    @property
    def width(self) -> int:
        """Floats of one row."""
        return math.prod(self.dims)

    @property
    def rank(self) -> int:
        """Axes, the batch included."""
        return len(self.dims) + 1

    def row_axis(self, axis: int) -> int | None:
        """The place in `dims` of an axis as ONNX counts it; None for the batch."""
        axis %= self.rank
        return None if axis == self.batch_axis else axis - (axis > self.batch_axis)


_READ_INTEGERS: Final = ("Cast", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
"""Operations to which an integer is what the same float is."""
Operand = Value | Array
Rule = Callable[["Lowering", "Node"], Sequence[Operand | None]]
RULES: Final[dict[tuple[str, str], Rule]] = {}
"""(domain, operation) to what lowers it."""


def lowers(*operations: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Names the operations that the decorated rule lowers."""

    def decorate(rule: Rule) -> Rule:
        RULES.update({(domain, operation): rule for operation in operations})
        return rule

    return decorate


@dataclass(slots=True)
class Node:
    """A node of the graph, its attributes decoded.

    Attributes:
        proto: the node.
        inputs: what it reads; None where an optional input is left out.
        attributes: by name; bytes decoded to text.
        opset: the version of its domain.
    """

    proto: NodeProto
    inputs: list[Operand | None]
    attributes: dict[str, Any]
    opset: int

    @property
    def operation(self) -> str:
        """For example "Gemm"."""
        return str(self.proto.op_type)

    def refuse(self, why: str) -> NotCovered:
        """The error that says that this node is not covered."""
        name = f" ({self.proto.name!r})" if self.proto.name else ""
        return NotCovered(self.operation, f"{self.operation}{name}: {why}")

    def value(self, number: int = 0) -> Value:
        """An input that has to depend on the row."""
        operand = self.operand(number)
        if not isinstance(operand, Value):
            raise self.refuse(f"input {number} is a constant")
        return operand

    def constant(self, number: int) -> Array:
        """An input that has to be a constant."""
        operand = self.operand(number)
        if isinstance(operand, Value):
            raise self.refuse(f"input {number} depends on the features, expected a constant")
        return operand

    def operand(self, number: int) -> Operand:
        """An input that has to be there."""
        operand = self.optional(number)
        if operand is None:
            raise self.refuse(f"input {number} is missing")
        return operand

    def optional(self, number: int) -> Operand | None:
        """An input, None where it is left out."""
        operand = self.inputs[number] if number < len(self.inputs) else None
        if isinstance(operand, Value) and operand.whole and self.operation not in _READ_INTEGERS:
            raise self.refuse("computes with integers, and the kernels have floats")
        return operand

    def optional_constant(self, number: int) -> Array | None:
        """A constant, None where it is left out."""
        return None if self.optional(number) is None else self.constant(number)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


@dataclass(slots=True)
class Lowering:
    """A plan under construction.

    Attributes:
        plan: the plan.
        batch_rows: the batch that the model fixes, None where it is free.
        readers: how many nodes read each buffer's value, by the name of the value in the graph.
        integers: names of the inputs of the model itself that are integers.
    """

    plan: Plan
    batch_rows: int | None
    integers: frozenset[str] = frozenset()
    readers: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        kind: Kind,
        inputs: Sequence[Value],
        dims: tuple[int, ...],
        tensors: tuple[Array, ...] = (),
        params: tuple[int, ...] = (),
        scalars: tuple[float, ...] = (),
    ) -> Value:
        """Add an operation that writes a new value of those axes."""
        width = math.prod(dims)
        if not 1 <= width <= WIDTH_MAX:
            raise NotCovered(kind.name, f"a tensor of {width:,} values a row, expected 1 to {WIDTH_MAX:,}")
        buffer = self.plan.add(kind, tuple(v.buffer for v in inputs), width, tensors, params, scalars)
        return Value(buffer, dims, inputs[0].batch_axis, self.plan.ops[-1])

    def rearranged(self, value: Value, index: Array, batch_axis: int) -> Value:
        """A value made of elements of another.

        Args:
            value: where they come from.
            index: for each element of the new value (its shape: the axes without the batch) the place in the
                old one, or -1 for a zero.
            batch_axis: where the batch stands in the new one.
        """
        dims = tuple(index.shape)
        flat = index.reshape(-1)
        if flat.size == value.width and np.array_equal(flat, np.arange(value.width)):
            return Value(value.buffer, dims, batch_axis, value.producer)
        if flat.size and flat[0] >= 0 and np.array_equal(flat, np.arange(flat[0], flat[0] + flat.size)):
            params = (int(flat[0]), flat.size, 0)
            made = self.add(Kind.COPY, [value], dims, params=params)
        else:
            params = (0, flat.size, 0)
            made = self.add(Kind.INDEX, [value], dims, (flat.astype(np.int64).astype(np.uint32),), params)
        return Value(made.buffer, dims, batch_axis)

    def places(self, value: Value) -> Array:
        """The place of each element of a value, in the shape of its axes without the batch."""
        return np.arange(value.width).reshape(value.dims)

    def broadcast(self, node: Node, value: Value, dims: tuple[int, ...]) -> Value:
        """A value repeated to those axes."""
        try:
            return self.rearranged(value, np.broadcast_to(self.places(value), dims), value.batch_axis)
        except ValueError:
            raise node.refuse(f"a row of shape {value.dims} does not go with {dims}") from None

    def only_reader(self, node: Node, number: int = 0) -> bool:
        """Whether nothing else reads that input."""
        return self.readers.get(node.proto.input[number], 0) == 1

    def layer_before(self, node: Node, number: int = 0) -> Op | None:
        """The layer whose answer is that input and nothing else's, while it has no function yet."""
        operand = node.operand(number)
        if not isinstance(operand, Value) or not self.only_reader(node, number):
            return None
        producer = operand.producer
        if producer is None or producer.kind is not Kind.DENSE or producer.out != operand.buffer:
            return None
        return producer if producer.params[2] == Function.IDENTITY else None


def row_constant(node: Node, constant: Array, value: Value) -> Array:
    """A constant as it goes with one row of a value, which it must not enlarge; float32, the row's shape."""
    rank = value.rank
    if constant.ndim > rank and math.prod(constant.shape[: constant.ndim - rank]) == 1:
        constant = constant.reshape(constant.shape[constant.ndim - rank :])
    if constant.ndim > rank:
        raise node.refuse(f"a constant of shape {constant.shape} beside a value of {rank} axes")
    full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    if full.shape[value.batch_axis] != 1:
        raise node.refuse("a constant that differs between the rows of a batch")
    full = np.squeeze(full, value.batch_axis)
    try:
        return np.ascontiguousarray(np.broadcast_to(full, value.dims), np.float32)
    except ValueError:
        raise node.refuse(f"a constant of shape {constant.shape} beside a row of {value.dims}") from None
