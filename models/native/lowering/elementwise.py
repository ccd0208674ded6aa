"""Functions of single values, and arithmetic between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sigd.models.native.lowering.graph import Array, Lowering, Node, Operand, Value, lowers, row_constant
from sigd.models.native.plan import FLOAT_MAX, Binary, Function, Kind

_PLAIN: Final = {
    "Relu": Function.RELU,
    "Sigmoid": Function.SIGMOID,
    "Tanh": Function.TANH,
    "Softplus": Function.SOFTPLUS,
    "Softsign": Function.SOFTSIGN,
    "Exp": Function.EXP,
    "Log": Function.LOG,
    "Sqrt": Function.SQRT,
    "Abs": Function.ABS,
    "Neg": Function.NEG,
    "Erf": Function.ERF,
    "Reciprocal": Function.RECIPROCAL,
    "HardSwish": Function.HARD_SWISH,
    "Mish": Function.MISH,
    "Sign": Function.SIGN,
    "Floor": Function.FLOOR,
    "Ceil": Function.CEIL,
    "Round": Function.ROUND,
}
_WITH_ALPHA: Final = {
    "LeakyRelu": (Function.LEAKY, 0.01),
    "Elu": (Function.ELU, 1.0),
    "Celu": (Function.CELU, 1.0),
    "ThresholdedRelu": (Function.THRESHOLDED_RELU, 1.0),
    "Swish": (Function.SWISH, 1.0),
}
_SELU_ALPHA: Final = 1.67326319217681884765625
_SELU_GAMMA: Final = 1.05070102214813232421875
_BINARY: Final = {
    "Add": Binary.ADD,
    "Sub": Binary.SUB,
    "Mul": Binary.MUL,
    "Div": Binary.DIV,
    "Min": Binary.MIN,
    "Max": Binary.MAX,
}


def apply(ctx: Lowering, node: Node, function: Function, alpha: float = 0.0, beta: float = 0.0) -> Value:
    """A function of the node's first input: part of the layer before it where there is one."""
    value = node.value()
    layer = ctx.layer_before(node)
    if layer is not None:
        layer.params = (*layer.params[:2], function, *layer.params[3:])
        layer.scalars = (alpha, beta)
        return value
    return ctx.add(Kind.MAP, [value], value.dims, params=(function,), scalars=(alpha, beta))


@lowers(*_PLAIN)
def plain(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A function without parameters."""
    return [apply(ctx, node, _PLAIN[node.operation])]


@lowers(*_WITH_ALPHA)
def with_alpha(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A function with one parameter."""
    function, default = _WITH_ALPHA[node.operation]
    return [apply(ctx, node, function, node.get("alpha", default))]


@lowers("Selu")
def selu(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """gamma * elu(x)."""
    return [apply(ctx, node, Function.SELU, node.get("alpha", _SELU_ALPHA), node.get("gamma", _SELU_GAMMA))]


@lowers("HardSigmoid")
def hard_sigmoid(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """max(0, min(1, alpha * x + beta))."""
    return [apply(ctx, node, Function.HARD_SIGMOID, node.get("alpha", 0.2), node.get("beta", 0.5))]


@lowers("Gelu")
def gelu(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """By the error function, or its approximation by tanh."""
    tanh = node.get("approximate", "none") == "tanh"
    return [apply(ctx, node, Function.GELU_TANH if tanh else Function.GELU)]


@lowers("Clip")
def clip(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Between two bounds, each of which may be left out."""
    low, high = node.get("min"), node.get("max")
    for number, name in ((1, "min"), (2, "max")):
        bound = node.optional_constant(number)
        if bound is not None:
            low, high = (float(bound), high) if name == "min" else (low, float(bound))
    low = -FLOAT_MAX if low is None else max(float(low), -FLOAT_MAX)
    high = FLOAT_MAX if high is None else min(float(high), FLOAT_MAX)
    return [apply(ctx, node, Function.CLIP, low, high)]


@lowers("Pow")
def power(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Squares, roots and the first power."""
    exponent = node.constant(1)
    if exponent.size != 1:
        raise node.refuse("an exponent for each value, expected one number")
    value, wanted = node.value(), float(exponent.reshape(-1)[0])
    if wanted == 1.0:
        return [value]
    if wanted == 2.0:
        return [ctx.add(Kind.BINARY, [value, value], value.dims, params=(Binary.MUL,))]
    if wanted == 0.5:
        return [apply(ctx, node, Function.SQRT)]
    raise node.refuse(f"an exponent of {wanted}, expected 0.5, 1 or 2")


@lowers(*_BINARY)
def arithmetic(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """Between two values, or a value and a constant."""
    how = _BINARY[node.operation]
    if len(node.inputs) == 1:
        return [node.operand(0)]
    if len(node.inputs) > 2:
        raise node.refuse(f"{len(node.inputs)} inputs, expected two")
    left, right = node.operand(0), node.operand(1)
    if isinstance(left, Value) and isinstance(right, Value):
        return [_between(ctx, node, how, left, right)]
    number = 0 if isinstance(left, Value) else 1
    value, constant = node.value(number), node.constant(1 - number)
    if how is Binary.ADD:
        joined = _as_bias(ctx, node, number, constant)
        if joined is not None:
            return [joined]
    row = row_constant(node, constant, value)
    return [ctx.add(Kind.CONSTANT, [value], value.dims, (row.reshape(-1),), (how, number))]


def _between(ctx: Lowering, node: Node, how: Binary, left: Value, right: Value) -> Value:
    if left.rank != right.rank or left.batch_axis != right.batch_axis:
        raise node.refuse(f"values of {left.rank} and {right.rank} axes, expected the same axes in both")
    try:
        dims = np.broadcast_shapes(left.dims, right.dims)
    except ValueError:
        raise node.refuse(f"rows of shape {left.dims} and {right.dims}") from None
    operands = [ctx.broadcast(node, left, dims), ctx.broadcast(node, right, dims)]
    return ctx.add(Kind.BINARY, operands, dims, params=(how,))


def _as_bias(ctx: Lowering, node: Node, number: int, constant: Array) -> Value | None:
    """The layer before with the constant in its bias; None without one, or where it varies by step."""
    layer, value = ctx.layer_before(node, number), node.value(number)
    if layer is None or value.row_axis(-1) is None:
        return None
    outputs = layer.params[1]
    rows = row_constant(node, constant, value).reshape(-1, outputs)
    if not np.array_equal(rows, np.broadcast_to(rows[0], rows.shape)):
        return None
    weights, bias = layer.tensors
    layer.tensors = (weights, bias + rows[0])
    return value
