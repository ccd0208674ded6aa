"""Which columns of a flat float32 row stand for which tensor of a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

EXACT_INTEGER_MAX: Final = 1 << 24
"""Every integer up to here has a float32 of its own."""
WHOLE_CALL: Final = -1
"""In place of a batch axis: the tensor has none, one call of the model is one row."""
_INTEGER_BITS: Final = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
_UNSIGNED_BITS: Final = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}
FLOATS: Final = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Columns:
    """One tensor of a graph as columns of a row, which lie one behind the other in C order.

    Attributes:
        name: the graph's name for it.
        tensor: where it is read instead: what a ZipMap was made of; "" where that is `name` itself.
        dtype: its own element type, for example "int64"; the wire carries float32.
        dims: its axes without the batch; empty where it is one value a row.
        batch_axis: which axis of the tensor is the batch; WHOLE_CALL where none is.
        first: number of its first column in the row.
        labels: of an output: the class that each column stands for; or, where the graph answers with text,
            the text that each number stands for.
        text: True where the graph answers with text, of which the row has the number.
        table: of an input whose integers number the rows of a table: how many the shortest one has; else 0.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    batch_axis: int = 0
    first: int = 0
    labels: tuple[str, ...] = ()
    text: bool = False
    tensor: str = ""
    table: int = 0

    @property
    def source(self) -> str:
        """The tensor of the graph that holds it."""
        return self.tensor or self.name

    @property
    def width(self) -> int:
        """How many columns."""
        return math.prod(self.dims)

    @property
    def is_flat(self) -> bool:
        """Whether a backend can read or write it in place, as float32 rows of its shape."""
        return self.dtype == "float32" and self.batch_axis == 0

    @property
    def integers(self) -> tuple[int, int] | None:
        """The least and the greatest value that a column can have, where its values are integers; else
        None."""
        return integer_range(self.dtype)


def integer_range(dtype: str) -> tuple[int, int] | None:
    """The integers that both the type and float32 hold exactly; None for a type of floats.

    >>> integer_range("int8"), integer_range("uint64"), integer_range("bool"), integer_range("float64")
    ((-128, 127), (0, 16777216), (0, 1), None)
    """
    if dtype == "bool":
        return 0, 1
    if bits := _INTEGER_BITS.get(dtype):
        greatest = 1 << (bits - 1)
        return max(-greatest, -EXACT_INTEGER_MAX), min(greatest - 1, EXACT_INTEGER_MAX)
    if bits := _UNSIGNED_BITS.get(dtype):
        return 0, min((1 << bits) - 1, EXACT_INTEGER_MAX)
    return None


def side_by_side(columns: Sequence[Columns]) -> tuple[Columns, ...]:
    """The same, each behind the one before it."""
    placed, first = [], 0
    for one in columns:
        placed.append(replace(one, first=first))
        first += one.width
    return tuple(placed)


def row_width(columns: Sequence[Columns]) -> int:
    """Values in a row of them."""
    return sum(one.width for one in columns)


def column_name(columns: Sequence[Columns], number: int) -> str:
    """What the column of that number, from 0, is called.

    >>> book = Columns("book", "float32", (2, 10))
    >>> column_name([book], 13), column_name([Columns("side", "int64", ())], 0)
    ('book[1][3]', 'side')
    """
    for one in columns:
        if one.first <= number < one.first + one.width:
            place, text = number - one.first, ""
            for size in reversed(one.dims):
                text = f"[{place % size}]{text}"
                place //= size
            return f"{one.name}{text}"
    return f"column {number}"
