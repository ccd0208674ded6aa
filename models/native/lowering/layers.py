"""Layers of weights, and what is normalised between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sigd.models.native.lowering.graph import Array, Lowering, Node, Operand, Value, lowers, row_constant
from sigd.models.native.plan import Binary, Function, Kind, Norm, Reduce

_SKIP_INPUTS_MIN: Final = 32
"""From here on it pays to look for zeros."""
_REDUCE: Final = {
    "ReduceSum": Reduce.SUM,
    "ReduceMean": Reduce.MEAN,
    "ReduceMax": Reduce.MAX,
    "ReduceMin": Reduce.MIN,
    "ReduceL1": Reduce.L1,
    "ReduceL2": Reduce.L2,
}


def dense(ctx: Lowering, value: Value, weights: Array, bias: Array, dims: tuple[int, ...]) -> Value:
    """A layer: weights [K, N] and bias [N] on each K values of a row."""
    inputs, outputs = weights.shape
    before = value.producer
    zeros = before is not None and (
        (before.kind is Kind.DENSE and before.params[2] == Function.RELU)
        or (before.kind is Kind.MAP and before.params[0] == Function.RELU)
    )
    tensors = (np.ascontiguousarray(weights, np.float32), np.ascontiguousarray(bias, np.float32))
    params = (inputs, outputs, int(Function.IDENTITY), int(zeros and inputs >= _SKIP_INPUTS_MIN))
    return ctx.add(Kind.DENSE, [value], dims, tensors, params)


@lowers("Gemm")
def gemm(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A layer with its bias."""
    value, weights = node.value(0), node.constant(1)
    if node.get("transA", 0) or value.rank != 2 or value.batch_axis != 0:
        raise node.refuse("its first input is not [batch, features]")
    weights = weights.T if node.get("transB", 0) else weights
    if weights.shape[0] != value.width:
        raise node.refuse(f"weights for {weights.shape[0]} inputs, and there are {value.width}")
    outputs = weights.shape[1]
    weights = weights.astype(np.float32) * np.float32(node.get("alpha", 1.0))
    bias = np.zeros(outputs, np.float32)
    constant = node.optional_constant(2)
    if constant is not None:
        bias = row_constant(node, constant, Value(0, (outputs,))) * np.float32(node.get("beta", 1.0))
    return [dense(ctx, value, weights, bias, (outputs,))]


@lowers("MatMul")
def matmul(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A layer on the last axis; its bias may come with an Add behind it."""
    value, weights = node.value(0), node.constant(1)
    if weights.ndim != 2 or value.row_axis(-1) is None or value.dims[-1] != weights.shape[0]:
        raise node.refuse(f"weights of shape {weights.shape} on a row of {value.dims}")
    dims = (*value.dims[:-1], weights.shape[1])
    made = dense(ctx, value, weights, np.zeros(weights.shape[1], np.float32), dims)
    return [made]


@lowers("BatchNormalization")
def batch_normalization(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """In inference: part of the layer before it, or one multiplication and addition."""
    if node.get("training_mode", 0):
        raise node.refuse("in training mode")
    value = node.value(0)
    scale, bias, mean, variance = (node.constant(number).astype(np.float64) for number in range(1, 5))
    factor = scale / np.sqrt(variance + node.get("epsilon", 1e-5))
    layer = ctx.layer_before(node)
    if layer is not None and len(value.dims) == 1:
        weights, before = (tensor.astype(np.float64) for tensor in layer.tensors)
        after = (before - mean) * factor + bias
        layer.tensors = ((weights * factor).astype(np.float32), after.astype(np.float32))
        return [value]
    if value.batch_axis != 0:
        raise node.refuse("the batch is not its first axis")
    # The mean is taken off first: folded into the shift it would cost the digits of a small difference.
    shape = (1, -1, *(1,) * (len(value.dims) - 1))
    rows = [row_constant(node, part.reshape(shape), value).reshape(-1) for part in (mean, factor, bias)]
    centred = ctx.add(Kind.CONSTANT, [value], value.dims, (rows[0],), (Binary.SUB, 0))
    return [ctx.add(Kind.AFFINE, [centred], value.dims, (rows[1], rows[2]))]


@lowers("LayerNormalization", "RMSNormalization")
def layer_normalization(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Over the last axes."""
    value = node.value(0)
    rms = node.operation == "RMSNormalization"
    axis = value.row_axis(node.get("axis", -1))
    if axis is None or value.batch_axis > axis:
        raise node.refuse("normalises over the batch")
    group = int(np.prod(value.dims[axis:]))
    scale = np.broadcast_to(node.constant(1), value.dims[axis:]).astype(np.float32).reshape(-1)
    given = node.optional_constant(2)
    bias = np.zeros(group, np.float32)
    if given is not None:
        bias = np.broadcast_to(given, value.dims[axis:]).astype(np.float32).reshape(-1)
    epsilon = node.get("epsilon", 1e-5)
    return [ctx.add(Kind.LAYERNORM, [value], value.dims, (scale, bias), (group, int(rms)), (epsilon,))]


@lowers("Softmax", "LogSoftmax")
def softmax(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Over one axis; before version 13 over all axes from one on."""
    value = node.value(0)
    old = node.opset < 13
    axis = value.row_axis(node.get("axis", 1 if old else -1))
    if axis is None:
        raise node.refuse("goes over the batch")
    logarithm = int(node.operation == "LogSoftmax")
    if old or axis == len(value.dims) - 1:
        if old and value.batch_axis != 0:
            raise node.refuse("the batch is not its first axis")
        group = int(np.prod(value.dims[axis:])) if old else value.dims[-1]
        return [ctx.add(Kind.SOFTMAX, [value], value.dims, params=(group, logarithm))]
    turned = ctx.rearranged(value, np.moveaxis(ctx.places(value), axis, -1), value.batch_axis)
    made = ctx.add(Kind.SOFTMAX, [turned], turned.dims, params=(value.dims[axis], logarithm))
    return [ctx.rearranged(made, np.moveaxis(ctx.places(made), -1, axis), value.batch_axis)]


def reduced(ctx: Lowering, value: Value, axes: Sequence[int], how: Reduce, keep: bool) -> Value:
    """Row axes of a value reduced to one number each, kept as axes of size 1 or taken out."""
    rest = [axis for axis in range(len(value.dims)) if axis not in axes]
    turned = ctx.rearranged(value, np.transpose(ctx.places(value), (*rest, *axes)), value.batch_axis)
    group = int(np.prod([value.dims[axis] for axis in axes]))
    dims = tuple(value.dims[axis] for axis in rest)
    made = ctx.add(Kind.REDUCE, [turned], dims, params=(group, how))
    if keep:
        return Value(
            made.buffer, tuple(1 if i in axes else d for i, d in enumerate(value.dims)), value.batch_axis
        )
    gone = sum(1 for axis in axes if axis < value.batch_axis)
    return Value(made.buffer, dims, value.batch_axis - gone)


@lowers(*_REDUCE)
def reduce_axes(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Over any axes but the batch."""
    value, axes = node.value(0), node.get("axes")
    given = node.optional_constant(1)
    if given is not None:
        axes = given.tolist()
    if not axes:
        raise node.refuse("reduces the batch")
    rows = [value.row_axis(axis) for axis in axes]
    if None in rows:
        raise node.refuse("reduces the batch")
    chosen = sorted(axis for axis in rows if axis is not None)
    return [reduced(ctx, value, chosen, _REDUCE[node.operation], bool(node.get("keepdims", 1)))]


@lowers("GlobalAveragePool", "GlobalMaxPool")
def global_pool(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Over all axes behind the channels."""
    value = node.value(0)
    if value.batch_axis != 0 or len(value.dims) < 2:
        raise node.refuse(f"on a row of {value.dims}")
    how = Reduce.MEAN if node.operation == "GlobalAveragePool" else Reduce.MAX
    return [reduced(ctx, value, range(1, len(value.dims)), how, keep=True)]


@lowers("LpNormalization")
def lp_normalization(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Over the last axis."""
    value = node.value(0)
    if value.row_axis(node.get("axis", -1)) != len(value.dims) - 1:
        raise node.refuse("does not go over the last axis")
    how = {1: Norm.L1, 2: Norm.L2}[node.get("p", 2)]
    return [ctx.add(Kind.NORMALIZE, [value], value.dims, params=(value.dims[-1], how))]


@lowers("Conv")
def conv(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Any number of axes, strides and dilations: windows laid side by side, then a layer on each of them."""
    value, weights = node.value(0), node.constant(1).astype(np.float32)
    given = node.optional_constant(2)
    bias = np.zeros(weights.shape[0], np.float32) if given is None else given
    spatial = len(value.dims) - 1
    if value.batch_axis != 0 or spatial < 1 or weights.ndim != spatial + 2:
        raise node.refuse(f"weights of shape {weights.shape} on a row of {value.dims}")
    windows = _windows(node, ctx.places(value), weights.shape[2:])
    groups = node.get("group", 1)
    channels, filters = value.dims[0] // groups, weights.shape[0] // groups
    outs = []
    for group in range(groups):
        # [positions..., channels, kernel...]
        picked = np.moveaxis(windows[group * channels : (group + 1) * channels], 0, spatial)
        laid = ctx.rearranged(value, picked.reshape(*picked.shape[:spatial], -1), 0)
        chosen = slice(group * filters, (group + 1) * filters)
        matrix = weights[chosen].reshape(filters, -1).T
        outs.append(dense(ctx, laid, matrix, bias[chosen], (*laid.dims[:-1], filters)))
    if groups == 1 and all(size == 1 for size in outs[0].dims[:-1]):
        return [Value(outs[0].buffer, (filters, *outs[0].dims[:-1]), 0, outs[0].producer)]
    turned = [ctx.rearranged(out, np.moveaxis(ctx.places(out), -1, 0), 0) for out in outs]
    return [turned[0] if groups == 1 else joined(ctx, turned)]


def joined(ctx: Lowering, values: Sequence[Value]) -> Value:
    """Values one behind the other along their first row axis."""
    dims = (sum(value.dims[0] for value in values), *values[0].dims[1:])
    made = ctx.add(Kind.COPY, [values[0]], dims, params=(0, values[0].width, 0))
    at = values[0].width
    for value in values[1:]:
        ctx.plan.append(Kind.COPY, value.buffer, made.buffer, (0, value.width, at))
        at += value.width
    return Value(made.buffer, dims, values[0].batch_axis)


def _windows(node: Node, places: Array, kernel: Sequence[int]) -> Array:
    """For each channel, position and place in the kernel the element that lies there; -1 beyond the edges.

    Shape: (channels, *positions, *kernel).
    """
    spatial = len(kernel)
    strides = node.get("strides", [1] * spatial)
    dilations = node.get("dilations", [1] * spatial)
    pads = list(node.get("pads", [0] * 2 * spatial))
    auto = node.get("auto_pad", "NOTSET")
    for axis in range(spatial):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            positions = -(-places.shape[axis + 1] // strides[axis])
            total = max((positions - 1) * strides[axis] + reach - places.shape[axis + 1], 0)
            small, large = total // 2, total - total // 2
            pads[axis], pads[axis + spatial] = (small, large) if auto == "SAME_UPPER" else (large, small)
    padded = np.pad(
        places, [(0, 0), *((pads[axis], pads[axis + spatial]) for axis in range(spatial))], constant_values=-1
    )
    for axis in range(spatial):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        positions = (padded.shape[axis + 1] - reach) // strides[axis] + 1
        if positions < 1:
            raise node.refuse("its kernel is larger than its input")
        at = np.arange(positions)[:, None] * strides[axis] + np.arange(kernel[axis]) * dilations[axis]
        padded = np.moveaxis(np.take(padded, at, axis=axis + 1), axis + 2, -1)
    return padded
