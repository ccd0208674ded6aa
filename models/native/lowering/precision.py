"""Weights in fewer bits: a plan's layers rewritten, everything else as it was."""

from __future__ import annotations

from typing import Final

import numpy as np

from sigd.models.errors import ModelRefused
from sigd.models.manifest import PrecisionName
from sigd.models.native.lowering.graph import Array
from sigd.models.native.plan import Kind, Op, Plan

_WEIGHTS: Final = {Kind.DENSE: (0,), Kind.LSTM: (0, 1), Kind.GRU: (0, 1)}
"""Which tensors of an operation are weights, [inputs, outputs]."""
_FEW_OUTPUTS: Final = 8
"""DOT_OUTPUTS_MAX: layers with so few outputs run in float32 anyway, and are the last word on an answer."""
_FLOAT16_MAX: Final = 65504.0
_STEPS: Final = 127
"""The largest 8-bit weight."""


def narrow(plan: Plan, precision: PrecisionName, what: str) -> None:
    """Give the layers of a plan weights of that precision; sums and functions stay float32.

    Args:
        precision: "fp16", "bf16" or "int8", which scales each output by a number of its own.
        what: the model, for messages.

    Raises:
        ModelRefused: it has no layer to narrow, or a weight is too large for float16.
    """
    narrowed = 0
    for op in plan.ops:
        places = _WEIGHTS.get(op.kind, ())
        if not places or (op.kind is Kind.DENSE and op.params[1] <= _FEW_OUTPUTS):
            continue
        narrowed += 1
        _narrow(op, places, precision, what)
    if not narrowed:
        raise ModelRefused(
            f"{what}: has no layer of more than {_FEW_OUTPUTS} outputs, so {precision} changes nothing: build"
            " it with --precision fp32"
        )


def _narrow(op: Op, places: tuple[int, ...], precision: PrecisionName, what: str) -> None:
    tensors = list(op.tensors)
    scales = []
    for place in places:
        weights = tensors[place]
        if precision == "fp16":
            tensors[place] = _to_fp16(weights, what)
        elif precision == "bf16":
            tensors[place] = to_bf16(weights)
        else:
            tensors[place], scale = _to_int8(weights)
            scales.append(scale)
    op.tensors = (*tensors, *scales)


def _to_fp16(weights: Array, what: str) -> Array:
    largest = float(np.abs(weights).max())
    if largest > _FLOAT16_MAX:
        raise ModelRefused(
            f"{what}: a weight of {largest:.6g} is beyond {_FLOAT16_MAX:.0f}, the largest float16: build it"
            " with --precision bf16 or fp32"
        )
    return weights.astype(np.float16)


def to_bf16(weights: Array) -> Array:
    """The upper 16 bits of float32, rounded to nearest, to even: as uint16."""
    bits = weights.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)
    # What rounds up to infinity keeps the largest number.
    infinite = rounded & np.uint32(0x7FFF) == 0x7F80
    return np.where(infinite, bits >> np.uint32(16), rounded).astype(np.uint16)


def _to_int8(weights: Array) -> tuple[Array, Array]:
    """Whole numbers of up to 127, and for each output what they are multiplied by."""
    scale = np.abs(weights).max(axis=0) / np.float32(_STEPS)
    scale = np.where(scale >= np.finfo(np.float32).smallest_normal, scale, np.float32(1)).astype(np.float32)
    return np.clip(np.rint(weights / scale), -_STEPS, _STEPS).astype(np.int8), scale
