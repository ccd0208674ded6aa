"""The operators of classical machine learning (ai.onnx.ml): linear models, scalers, normalisers, imputers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sigd.models.native.lowering.graph import Array, Lowering, Node, Operand, Value, lowers
from sigd.models.native.lowering.layers import dense
from sigd.models.native.plan import Binary, Function, Kind, Norm

ML: Final = "ai.onnx.ml"


def flat(node: Node) -> Value:
    """An input of the shape [batch, features]."""
    value = node.value(0)
    if value.batch_axis != 0 or len(value.dims) != 1:
        raise node.refuse(f"a row of {value.dims}, expected features alone")
    return value


def transformed(ctx: Lowering, node: Node, value: Value) -> Value:
    """What the node's `post_transform` makes of scores."""
    how = node.get("post_transform", "NONE")
    if how == "NONE":
        return value
    if how == "LOGISTIC":
        return ctx.add(Kind.MAP, [value], value.dims, params=(Function.SIGMOID,))
    if how == "PROBIT":
        return ctx.add(Kind.MAP, [value], value.dims, params=(Function.PROBIT,))
    if how == "SOFTMAX":
        return ctx.add(Kind.SOFTMAX, [value], value.dims, params=(value.width, 0))
    raise node.refuse(f"with the transform {how}")


def two_classes(ctx: Lowering, node: Node, score: Value, *, probability: bool) -> Value:
    """The scores of both classes from that of the second.

    Args:
        probability: the first is what is missing to 1; otherwise it is the second negated, transformed.
    """
    both = ctx.rearranged(score, np.array([0, 0]), 0)
    factor = np.array([-1.0, 1.0], np.float32)
    if probability:
        return ctx.add(Kind.AFFINE, [both], (2,), (factor, np.array([1.0, 0.0], np.float32)))
    scores = ctx.add(Kind.AFFINE, [both], (2,), (factor, np.zeros(2, np.float32)))
    if node.get("post_transform", "NONE") == "LOGISTIC":
        return ctx.add(Kind.MAP, [scores], (2,), params=(Function.SIGMOID,))
    return scores


@lowers("LinearRegressor", domain=ML)
def linear_regressor(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A layer."""
    value, targets = flat(node), node.get("targets", 1)
    weights = np.array(node.get("coefficients", []), np.float32).reshape(targets, -1).T
    bias = np.array(node.get("intercepts") or np.zeros(targets), np.float32)
    if weights.shape[0] != value.width:
        raise node.refuse(f"weights for {weights.shape[0]} inputs, and there are {value.width}")
    return [transformed(ctx, node, dense(ctx, value, weights, bias, (targets,)))]


@lowers("LinearClassifier", domain=ML)
def linear_classifier(ctx: Lowering, node: Node) -> Sequence[Operand | None]:
    """A layer; the label itself is not covered, the scores are."""
    value = flat(node)
    bias = np.array(node.get("intercepts", []), np.float32)
    weights = np.array(node.get("coefficients", []), np.float32).reshape(max(len(bias), 1), -1).T
    if weights.shape[0] != value.width or not len(bias):
        raise node.refuse(f"weights for {weights.shape[0]} inputs, and there are {value.width}")
    scores = dense(ctx, value, weights, bias, (len(bias),))
    if len(bias) > 1:
        return [None, transformed(ctx, node, scores)]
    raise node.refuse("with one score for two classes")


@lowers("Scaler", domain=ML)
def scaler(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """(x - offset) * scale. The offset goes first: folded in it costs the digits of a small difference."""
    value = flat(node)

    def row(name: str, default: float) -> Array:
        given = np.array(node.get(name) or [default], np.float32)
        return np.ascontiguousarray(np.broadcast_to(given, (value.width,)))

    centred = ctx.add(Kind.CONSTANT, [value], value.dims, (row("offset", 0.0),), (Binary.SUB, 0))
    return [ctx.add(Kind.CONSTANT, [centred], value.dims, (row("scale", 1.0),), (Binary.MUL, 0))]


@lowers("Normalizer", domain=ML)
def normalizer(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """By the largest value, the L1 or the L2 norm of the row."""
    value = flat(node)
    how = {"MAX": Norm.MAX, "L1": Norm.L1, "L2": Norm.L2}[node.get("norm", "MAX")]
    return [ctx.add(Kind.NORMALIZE, [value], value.dims, params=(value.width, how))]


@lowers("Imputer", domain=ML)
def imputer(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A value that stands for a missing one becomes another."""
    value = flat(node)
    fill = np.array(node.get("imputed_value_floats", []), np.float32)
    missing = float(node.get("replaced_value_float", 0.0))
    if fill.size not in (1, value.width) or not np.isfinite(fill).all():
        raise node.refuse(f"{fill.size} values to fill in, expected 1 or {value.width}, all finite")
    fill = np.ascontiguousarray(np.broadcast_to(fill, (value.width,)))
    if not np.isnan(missing):
        raise node.refuse("replaces a number, expected NaN")
    return [ctx.add(Kind.IMPUTE, [value], value.dims, (fill,), (1,), (0.0,))]
