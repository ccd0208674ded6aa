"""Writing a plan: the model as data that the kernels run. `plan.h` describes the bytes and the operations."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NONE: Final = 0xFFFFFFFF
LEAF: Final = 0x7FFFFFFF
MISSING_TRUE: Final = 0x80000000
FLOAT_MAX: Final = float(np.finfo(np.float32).max)

_MAGIC: Final = b"sigdplan"
_VERSION: Final = 2
_HEADER: Final = struct.Struct("<8s6IQ24x")
_TENSOR: Final = struct.Struct("<IIQQ")
_OP: Final = struct.Struct("<2I3I8I8I3f")
_ALIGNMENT: Final = 64
_INPUTS, _TENSORS, _PARAMS, _SCALARS = 3, 8, 8, 3

Array = npt.NDArray[Any]


class Kind(IntEnum):
    """enum plan_kind."""

    DENSE = 1
    MAP = 2
    AFFINE = 3
    BINARY = 4
    CONSTANT = 5
    COPY = 6
    INDEX = 7
    SOFTMAX = 8
    LAYERNORM = 9
    NORMALIZE = 10
    REDUCE = 11
    TREES = 12
    IMPUTE = 13
    LSTM = 14
    GRU = 15


class Function(IntEnum):
    """enum plan_function."""

    IDENTITY = 0
    RELU = 1
    LEAKY = 2
    ELU = 3
    SELU = 4
    SIGMOID = 5
    TANH = 6
    HARD_SIGMOID = 7
    CLIP = 8
    GELU = 9
    GELU_TANH = 10
    SOFTPLUS = 11
    SOFTSIGN = 12
    EXP = 13
    LOG = 14
    SQRT = 15
    ABS = 16
    NEG = 17
    ERF = 18
    RECIPROCAL = 19
    HARD_SWISH = 20
    SWISH = 21
    MISH = 22
    CELU = 23
    THRESHOLDED_RELU = 24
    SIGN = 25
    FLOOR = 26
    CEIL = 27
    ROUND = 28
    PROBIT = 29


class Binary(IntEnum):
    """enum plan_binary."""

    ADD = 0
    SUB = 1
    MUL = 2
    DIV = 3
    MIN = 4
    MAX = 5


class Norm(IntEnum):
    """enum plan_norm."""

    MAX = 0
    L1 = 1
    L2 = 2


class Reduce(IntEnum):
    """enum plan_reduce."""

    SUM = 0
    MEAN = 1
    MAX = 2
    MIN = 3
    L1 = 4
    L2 = 5


_DTYPES: Final = {"float32": 1, "uint32": 2, "float16": 3, "uint16": 4, "int8": 5}
"""numpy's name of a tensor's elements to enum plan_dtype; bfloat16 goes as its bits, uint16."""


@dataclass(slots=True)
class Op:
    """One operation; what each field holds is in `plan.h`."""

    kind: Kind
    out: int
    inputs: tuple[int, ...]
    tensors: tuple[Array, ...] = ()
    params: tuple[int, ...] = ()
    scalars: tuple[float, ...] = ()


@dataclass(slots=True)
class Plan:
    """A plan under construction. Buffer 0 holds the features of a row, buffer 1 its answer.

    Attributes:
        widths: floats of each buffer.
        ops: in the order in which they run.
    """

    widths: list[int]
    ops: list[Op] = field(default_factory=list)

    def buffer(self, width: int) -> int:
        """A new buffer of that many floats."""
        self.widths.append(width)
        return len(self.widths) - 1

    def add(
        self,
        kind: Kind,
        inputs: tuple[int, ...],
        width: int,
        tensors: tuple[Array, ...] = (),
        params: tuple[int, ...] = (),
        scalars: tuple[float, ...] = (),
    ) -> int:
        """Add an operation that writes a new buffer of that width; the buffer."""
        out = self.buffer(width)
        self.ops.append(Op(kind, out, inputs, tensors, params, scalars))
        return out

    def append(self, kind: Kind, source: int, out: int, params: tuple[int, ...]) -> None:
        """Add an operation that writes the next part of a buffer that is begun."""
        self.ops.append(Op(kind, out, (source,), (), params))

    def encode(self) -> bytes:
        """The plan as bytes."""
        tensors: list[Array] = []
        rows = [_encode_op(op, tensors) for op in self.ops]
        widths = np.array(self.widths, "<u4").tobytes()
        widths += bytes(-len(widths) % 8)
        place = _HEADER.size + len(widths) + _TENSOR.size * len(tensors) + _OP.size * len(rows)
        table, data = [], []
        start = place + -place % _ALIGNMENT
        for tensor in tensors:
            content = np.ascontiguousarray(tensor).tobytes()
            table.append(_TENSOR.pack(_DTYPES[tensor.dtype.name], 0, tensor.size, start))
            content += bytes(-len(content) % _ALIGNMENT)
            data.append(content)
            start += len(content)
        header = _HEADER.pack(
            _MAGIC, _VERSION, self.widths[0], self.widths[1], len(self.widths), len(rows), len(tensors), start
        )
        return b"".join([header, widths, *table, *rows, bytes(-place % _ALIGNMENT), *data])


def _encode_op(op: Op, tensors: list[Array]) -> bytes:
    """One row of the table of operations; its tensors join the others."""
    numbers = range(len(tensors), len(tensors) + len(op.tensors))
    tensors.extend(op.tensors)

    def filled(values: tuple[Any, ...] | range, count: int, rest: float) -> list[Any]:
        return [*values, *([rest] * (count - len(values)))]

    return _OP.pack(
        op.kind,
        op.out,
        *filled(op.inputs, _INPUTS, NONE),
        *filled(numbers, _TENSORS, NONE),
        *filled(op.params, _PARAMS, 0),
        *filled(op.scalars, _SCALARS, 0.0),
    )
