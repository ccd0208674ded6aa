"""From an ONNX model to a plan: every operation by its rule, or a refusal that names the one without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sigd.models.errors import ModelRefused
from sigd.models.manifest import PrecisionName
from sigd.models.native.lowering import classical, elementwise, layers, recurrent, shapes, trees
from sigd.models.native.lowering.graph import RULES, Lowering, Node, NotCovered, Operand, Value
from sigd.models.native.lowering.precision import narrow
from sigd.models.native.plan import Kind, Plan
from sigd.models.spec import ModelSpec

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["NotCovered", "classical", "elementwise", "layers", "lower", "recurrent", "shapes", "trees"]

_DOMAINS = {"ai.onnx": ""}


def lower(model: ModelProto, spec: ModelSpec, precision: PrecisionName = "fp32") -> bytes:
    """The plan of a model.

    Args:
        model: the ONNX model, its weights inside.
        spec: what it is.
        precision: of the weights of its layers.

    Returns:
        The plan, for `_kernels.load`.

    Raises:
        NotCovered: the kernels do not cover an operation of it.
        ModelRefused: its weights cannot have that precision.
    """
    from onnx import numpy_helper

    integers = frozenset(one.name for one in spec.input_columns if one.integers is not None)
    ctx = Lowering(Plan([spec.features, spec.outputs]), spec.batch_rows, integers=integers)
    nodes = _needed(model, spec.output_name)
    for proto in nodes:
        for name in proto.input:
            ctx.readers[name] = ctx.readers.get(name, 0) + 1
    ctx.readers[spec.output_name] = ctx.readers.get(spec.output_name, 0) + 1
    known: dict[str, Operand | None] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    known[spec.input_name] = Value(0, spec.input_dims)
    opsets = {_DOMAINS.get(entry.domain, entry.domain): entry.version for entry in model.opset_import}
    for proto in nodes:
        node = _node(proto, known, opsets)
        for name, made in zip(proto.output, _lowered(ctx, node, model), strict=False):
            known[name] = made
    answer = known.get(spec.output_name)
    if answer is None and nodes:
        raise node.refuse(f"does not give its output {spec.output_name!r}")
    _finish(ctx, answer, spec)
    _check_finite(ctx.plan)
    if precision != "fp32":
        narrow(ctx.plan, precision, str(spec.path))
    return ctx.plan.encode()


def _check_finite(plan: Plan) -> None:
    """A mask of -inf, for one: the kernels take none, for an answer that is not finite is none."""
    for op in plan.ops:
        for tensor in op.tensors:
            if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                raise NotCovered(op.kind.name, "a constant that is NaN or infinite")


def _needed(model: ModelProto, output: str) -> list[NodeProto]:
    """The nodes on which the output depends, in the order of the graph."""
    wanted, chosen = {output}, []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            chosen.append(node)
            wanted.update(node.input)
    return chosen[::-1]


def _node(proto: NodeProto, known: dict[str, Operand | None], opsets: dict[str, int]) -> Node:
    domain = _DOMAINS.get(proto.domain, proto.domain)
    node = Node(proto, [], dict(_attributes(proto)), opsets.get(domain, 1))
    for name in proto.input:
        operand = known.get(name)
        if name and operand is None:
            raise node.refuse(f"reads {name!r}, which the kernels do not give")
        node.inputs.append(operand)
    return node


def _attributes(proto: NodeProto) -> Iterator[tuple[str, Any]]:
    from onnx import helper, numpy_helper

    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            value = [part.decode("utf-8", "replace") for part in value]
        elif attribute.HasField("t"):
            value = numpy_helper.to_array(value)
        yield attribute.name, value


def _lowered(ctx: Lowering, node: Node, model: ModelProto) -> list[Operand | None]:
    """What a node gives: by its rule, or where it reads constants alone what they come to."""
    if not any(isinstance(operand, Value) for operand in node.inputs):
        return _folded(node, model)
    rule = RULES.get((_DOMAINS.get(node.proto.domain, node.proto.domain), node.operation))
    if rule is None:
        raise node.refuse("the native kernels do not have it")
    try:
        made = list(rule(ctx, node))
    except ModelRefused:
        raise
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise node.refuse(f"its attributes do not fit together ({error})") from error
    shared = {
        operand.buffer
        for number, operand in enumerate(node.inputs)
        if isinstance(operand, Value) and not ctx.only_reader(node, number)
    }
    # Under its new name it would look as if nothing else read it.
    return [
        replace(out, producer=None) if isinstance(out, Value) and out.buffer in shared else out
        for out in made
    ]


def _folded(node: Node, model: ModelProto) -> list[Operand | None]:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.proto.input if name]
    graph = helper.make_graph(
        [node.proto],
        "constant",
        [helper.make_value_info(name, helper.make_tensor_type_proto(1, None)) for name in names],
        [helper.make_value_info(name, helper.make_tensor_type_proto(1, None)) for name in node.proto.output],
    )
    try:
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import))
        constants = [operand for operand in node.inputs if operand is not None]
        return [np.asarray(part) for part in evaluator.run(None, dict(zip(names, constants, strict=True)))]
    except Exception as error:
        raise node.refuse(f"its constants cannot be computed ({error})") from error


def _finish(ctx: Lowering, answer: Operand | None, spec: ModelSpec) -> None:
    """Let the last operation write the answer, or copy it there."""
    if not isinstance(answer, Value):
        raise NotCovered("output", f"the output {spec.output_name!r} does not depend on the features")
    if answer.width != spec.outputs or answer.batch_axis != 0:
        raise NotCovered("output", f"the output {spec.output_name!r} has rows of {answer.dims}")
    ops = ctx.plan.ops
    writers = [op for op in ops if op.out == answer.buffer]
    read = any(answer.buffer in op.inputs for op in ops)
    if writers and not read:
        for op in writers:
            op.out = 1
        ctx.plan.widths[answer.buffer] = 1
        return
    ctx.plan.append(Kind.COPY, answer.buffer, 1, (0, spec.outputs, 0))
