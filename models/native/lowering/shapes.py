"""Operations that only move values: most of them cost nothing, the others become a copy or an index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from sigd.models.native.lowering.graph import Array, Lowering, Node, Operand, Value, lowers
from sigd.models.native.lowering.layers import joined
from sigd.models.native.plan import Binary, Kind

_FLOAT: Final = 1
_WIDE_INTEGERS: Final = (6, 7)
"""int32 and int64, which hold every integer that is sent."""
_OPEN_END: Final = 1 << 60


def reshaped(ctx: Lowering, node: Node, value: Value, wanted: Sequence[int]) -> Value:
    """The same values under other axes, sized as Reshape takes them (0: as it was, -1: the rest)."""
    sizes = [value_size(ctx, value, axis) if size == 0 else int(size) for axis, size in enumerate(wanted)]
    if value.batch_axis != 0:
        raise node.refuse("reshapes a value whose batch is not its first axis")
    if not sizes or sizes[0] not in (-1, ctx.batch_rows):
        raise node.refuse(f"to {list(wanted)}, which does not keep the batch as the first axis")
    dims = sizes[1:]
    if sizes[0] == -1 and -1 in dims and ctx.batch_rows is None and wanted[0] == -1:
        raise node.refuse(f"to {list(wanted)}, with two free sizes")
    if -1 in dims:
        known = math.prod(size for size in dims if size != -1)
        dims[dims.index(-1)] = value.width // known if known else 0
    if math.prod(dims) != value.width or min(dims, default=1) < 1:
        raise node.refuse(f"a row of {value.dims} to {list(wanted)}, which moves values between rows")
    return Value(value.buffer, tuple(dims), 0, value.producer)


def value_size(ctx: Lowering, value: Value, axis: int) -> int:
    """The size of an axis, -1 for a free batch."""
    if axis >= value.rank:
        return 0
    row = value.row_axis(axis)
    if row is not None:
        return value.dims[row]
    return -1 if ctx.batch_rows is None else ctx.batch_rows


@lowers("Identity", "Dropout")
def identity(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Nothing, in inference."""
    training = node.operation == "Dropout" and node.optional_constant(2)
    if training is not None and np.any(training):
        raise node.refuse("in training mode")
    return [node.operand(0)]


@lowers("Cast")
def cast(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """To float32, which every value is; or to the integers of an input, of which the daemon lets no others
    through."""
    value, to = node.value(), node.get("to")
    integers = node.proto.output[0] in ctx.integers or (value.whole and to in _WIDE_INTEGERS)
    if to != _FLOAT and not integers:
        raise node.refuse("to another type than float32")
    return [replace(value, whole=integers)]


@lowers("Shape")
def shape(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """The sizes of the axes; -1 for a free batch, which is what Reshape takes for it."""
    value = node.value()
    sizes = [value_size(ctx, value, axis) for axis in range(value.rank)]
    return [np.array(sizes[node.get("start", 0) : node.get("end", len(sizes))], np.int64)]


@lowers("Reshape")
def reshape(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Other axes behind the batch."""
    return [reshaped(ctx, node, node.value(0), node.constant(1).tolist())]


@lowers("Flatten")
def flatten(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """All axes behind the batch in one."""
    value = node.value()
    if node.get("axis", 1) % max(value.rank, 1) != 1 or value.batch_axis != 0:
        raise node.refuse("does not begin behind the batch")
    return [Value(value.buffer, (value.width,), 0, value.producer)]


@lowers("Squeeze")
def squeeze(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Axes of size 1 go."""
    value = node.value()
    axes = _axes(node)
    if axes is None:
        axes = [axis for axis in range(value.rank) if value_size(ctx, value, axis) == 1]
    gone = [axis % value.rank for axis in axes]
    rows = [value.row_axis(axis) for axis in gone]
    if any(row is None or value.dims[row] != 1 for row in rows):
        raise node.refuse("takes away the batch, or an axis that is larger than 1")
    dims = tuple(size for axis, size in enumerate(value.dims) if axis not in rows)
    before = sum(1 for axis in gone if axis < value.batch_axis)
    return [Value(value.buffer, dims, value.batch_axis - before, value.producer)]


@lowers("Unsqueeze")
def unsqueeze(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """New axes of size 1."""
    value = node.value()
    axes = _axes(node)
    if axes is None:
        raise node.refuse("without axes")
    rank = value.rank + len(axes)
    new = {axis % rank for axis in axes}
    sizes = iter(
        value_size(ctx, value, axis) if value.row_axis(axis) is not None else None
        for axis in range(value.rank)
    )
    full = [1 if axis in new else next(sizes) for axis in range(rank)]
    batch = full.index(None)
    return [Value(value.buffer, tuple(s for s in full if s is not None), batch, value.producer)]


@lowers("Transpose")
def transpose(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Axes in another order."""
    value = node.value()
    order = list(node.get("perm", range(value.rank)[::-1]))
    rows = [row for row in (value.row_axis(axis) for axis in order) if row is not None]
    return [ctx.rearranged(value, np.transpose(ctx.places(value), rows), order.index(value.batch_axis))]


@lowers("Slice")
def slice_axes(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A range of each axis."""
    value = node.value(0)
    if node.opset < 10:
        starts, ends, axes, steps = node.get("starts"), node.get("ends"), node.get("axes"), None
    else:
        starts, ends = node.constant(1).tolist(), node.constant(2).tolist()
        given = [node.optional_constant(number) for number in (3, 4)]
        axes, steps = (None if part is None else part.tolist() for part in given)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    chosen = [slice(None)] * len(value.dims)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        row = value.row_axis(axis)
        if row is None:
            if start == 0 and step == 1 and end > _OPEN_END:
                continue
            raise node.refuse("takes a part of the batch")
        open_end = end < -value.dims[row] and step < 0
        chosen[row] = slice(start, None if open_end else end, step)
    return [ctx.rearranged(value, ctx.places(value)[tuple(chosen)], value.batch_axis)]


@lowers("Gather")
def gather(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Elements that a constant names."""
    value, index = node.value(0), node.constant(1)
    axis = value.row_axis(node.get("axis", 0))
    if axis is None or index.ndim > 1:
        raise node.refuse("takes a part of the batch, or by more than one axis of indices")
    if index.size and not -value.dims[axis] <= index.min() <= index.max() < value.dims[axis]:
        raise node.refuse("an index is out of its range")
    places = np.take(ctx.places(value), index % value.dims[axis], axis=axis)
    gone = index.ndim == 0 and node.get("axis", 0) % value.rank < value.batch_axis
    return [ctx.rearranged(value, places, value.batch_axis - int(gone))]


@lowers("Split")
def split(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """An axis in pieces."""
    value = node.value(0)
    axis = value.row_axis(node.get("axis", 0))
    if axis is None:
        raise node.refuse("takes the batch apart")
    count = len(node.proto.output)
    given = node.optional_constant(1)
    sizes = node.get("split") if given is None else given.tolist()
    if sizes is None:
        size = -(-value.dims[axis] // count)
        sizes = [min(size, value.dims[axis] - size * number) for number in range(count)]
    pieces = np.split(ctx.places(value), np.cumsum(sizes)[:-1], axis=axis)
    return [ctx.rearranged(value, piece, value.batch_axis) for piece in pieces]


@lowers("Concat")
def concat(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Values one behind the other along an axis."""
    values = [node.value(number) for number in range(len(node.inputs))]
    first = values[0]
    axis = first.row_axis(node.get("axis", 0))
    if axis is None or any(v.rank != first.rank or v.batch_axis != first.batch_axis for v in values):
        raise node.refuse("joins rows, or values of different axes")
    if len(values) == 1:
        return [first]
    turned = [ctx.rearranged(v, np.moveaxis(ctx.places(v), axis, 0), v.batch_axis) for v in values]
    made = joined(ctx, turned)
    return [ctx.rearranged(made, np.moveaxis(ctx.places(made), 0, axis), first.batch_axis)]


@lowers("Expand")
def expand(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A row repeated along its axes of size 1."""
    value, sizes = node.value(0), node.constant(1).tolist()
    if len(sizes) > value.rank:
        raise node.refuse("adds axes")
    sizes = [1] * (value.rank - len(sizes)) + sizes
    if sizes.pop(value.batch_axis) not in (1, -1, ctx.batch_rows):
        raise node.refuse("repeats rows")
    return [ctx.broadcast(node, value, np.broadcast_shapes(value.dims, tuple(sizes)))]


@lowers("Tile")
def tile(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A row repeated."""
    value, times = node.value(0), node.constant(1).tolist()
    if len(times) != value.rank or times.pop(value.batch_axis) != 1:
        raise node.refuse("repeats rows")
    return [ctx.rearranged(value, np.tile(ctx.places(value), times), value.batch_axis)]


@lowers("Pad")
def pad(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A number, or values from the edges, around a row."""
    value = node.value(0)
    given = node.optional_constant(1)
    pads = node.get("pads") if given is None else given.tolist()
    fill = node.optional_constant(2)
    number = float(fill.reshape(-1)[0]) if fill is not None and fill.size else node.get("value", 0.0)
    if not math.isfinite(number):
        raise node.refuse(f"fills with {number}")
    if node.optional(3) is not None or len(pads) != 2 * value.rank:
        raise node.refuse("for some axes only")
    widths = list(zip(pads[: value.rank], pads[value.rank :], strict=True))
    if widths.pop(value.batch_axis) != (0, 0) or min(map(min, widths)) < 0:
        raise node.refuse("adds rows, or takes away")
    places = _padded(node, ctx.places(value), widths)
    made = ctx.rearranged(value, places, value.batch_axis)
    if not number or places.min() >= 0:
        return [made]
    around = np.where(places < 0, np.float32(number), np.float32(0)).reshape(-1)
    return [ctx.add(Kind.CONSTANT, [made], made.dims, (around,), (Binary.ADD, 0))]


def _padded(node: Node, places: Array, widths: list[tuple[int, int]]) -> Array:
    mode = node.get("mode", "constant")
    if mode == "constant":
        return np.pad(places, widths, constant_values=-1)
    if mode not in ("edge", "reflect", "wrap"):
        raise node.refuse(f"in the mode {mode!r}")
    return np.asarray(np.pad(places, widths, mode=mode))


def _axes(node: Node) -> list[int] | None:
    """Axes, an attribute once and an input now."""
    given = node.optional_constant(1)
    axes = node.get("axes") if given is None else given.reshape(-1).tolist()
    return None if axes is None else list(axes)
