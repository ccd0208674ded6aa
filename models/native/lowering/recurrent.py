"""LSTM and GRU over a window of steps, from a state of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sigd.models.native.lowering.graph import Array, Lowering, Node, Operand, Value, lowers
from sigd.models.native.lowering.layers import joined
from sigd.models.native.plan import Kind

_GATES: Final = {"LSTM": 4, "GRU": 3}
_FUNCTIONS: Final = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}


@lowers("LSTM", "GRU")
def recurrent(ctx: Lowering, node: Node) -> Sequence[Operand | None]:
    """Either direction or both; all states, or the last one."""
    value = node.value(0)
    layout = node.get("layout", 0)
    _check(node, value, layout)
    names = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}[node.get("direction", "forward")]
    wanted = [bool(name) and ctx.readers.get(name, 0) > 0 for name in node.proto.output]
    wanted += [False] * (3 - len(wanted))
    if wanted[2]:
        raise node.refuse("its last cell state is used")
    each = (
        [_direction(ctx, node, value, number, bool(back), True) for number, back in enumerate(names)]
        if wanted[0]
        else []
    )
    last = (
        [_direction(ctx, node, value, number, bool(back), False) for number, back in enumerate(names)]
        if wanted[1]
        else []
    )
    return [
        _all_states(ctx, each, layout) if each else None,
        _last_states(ctx, last, layout) if last else None,
    ]


def _check(node: Node, value: Value, layout: int) -> None:
    if value.rank != 3 or value.batch_axis != (0 if layout else 1):
        raise node.refuse(f"a row of {value.dims}, expected steps and features")
    if node.optional(4) is not None:
        raise node.refuse("sequences of different lengths")
    for number in (5, 6):
        start = node.optional_constant(number)
        if start is not None and start.any():
            raise node.refuse("does not begin with a state of zeros")
    if node.optional(7) is not None and node.constant(7).any():
        raise node.refuse("with peepholes")
    if node.get("clip") is not None or node.get("input_forget", 0):
        raise node.refuse("with clip or input_forget")
    functions = node.get("activations")
    usual = _FUNCTIONS[node.operation]
    if functions and [f.lower() for f in functions] != [f.lower() for f in usual] * (
        len(functions) // len(usual)
    ):
        raise node.refuse(f"with the functions {functions}")


def _direction(ctx: Lowering, node: Node, value: Value, number: int, back: bool, each: bool) -> Value:
    """The states of one direction: dims (steps, hidden), or (hidden,) for the last one."""
    weights, states = (node.constant(slot)[number].astype(np.float32) for slot in (1, 2))
    steps, inputs = value.dims
    hidden = states.shape[1]
    tensors = (
        np.ascontiguousarray(weights.T),
        np.ascontiguousarray(states.T),
        *_biases(node, number, hidden),
    )
    kind = Kind.LSTM if node.operation == "LSTM" else Kind.GRU
    resets_first = kind is Kind.GRU and not node.get("linear_before_reset", 0)
    params = (steps, inputs, hidden, int(each), int(back), int(resets_first))
    return ctx.add(kind, [value], (steps, hidden) if each else (hidden,), tensors, params)


def _biases(node: Node, number: int, hidden: int) -> tuple[Array, Array]:
    gates = _GATES[node.operation] * hidden
    given = node.optional_constant(3)
    both = np.zeros(2 * gates, np.float32) if given is None else given[number].astype(np.float32)
    return np.ascontiguousarray(both[:gates]), np.ascontiguousarray(both[gates:])


def _all_states(ctx: Lowering, directions: list[Value], layout: int) -> Value:
    """[steps, directions, batch, hidden], or with `layout` [batch, steps, directions, hidden]."""
    steps, hidden = directions[0].dims
    whole = directions[0] if len(directions) == 1 else joined(ctx, directions)
    places = ctx.places(whole).reshape(len(directions), steps, hidden)
    return ctx.rearranged(whole, np.moveaxis(places, 0, 1), 0 if layout else 2)


def _last_states(ctx: Lowering, directions: list[Value], layout: int) -> Value:
    """[directions, batch, hidden], or with `layout` [batch, directions, hidden]."""
    (hidden,) = directions[0].dims
    whole = directions[0] if len(directions) == 1 else joined(ctx, directions)
    return Value(whole.buffer, (len(directions), hidden), 0 if layout else 1, whole.producer)
