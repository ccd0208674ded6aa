"""What a model is made of, node by node, as far as its file can be read on this machine."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from sigd.models.build.nvidia import recording_logger
from sigd.models.errors import BackendUnavailable

if TYPE_CHECKING:
    from onnx import ModelProto

    from sigd.models.build.builder_types import Module


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a graph, or one fused step of a plan.

    Attributes:
        name: of the node; empty where it has none.
        operator: its type, with the domain where that is not ONNX's own; empty where a plan gives names only.
        outputs: the tensors that it gives.
        parameters: values in the constant tensors that it reads, or in its attributes (trees); 0 where a plan
            does not say.
    """

    name: str
    operator: str = ""
    outputs: tuple[str, ...] = ()
    parameters: int = 0


def onnx_layers(model: ModelProto) -> tuple[Layer, ...]:
    """The nodes of an ONNX model (an engine of ONNX Runtime is one too), in the order they run."""
    graph = model.graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    return tuple(
        Layer(
            name=node.name,
            operator=f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            outputs=tuple(node.output),
            parameters=sum(sizes.get(name, 0) for name in node.input)
            + (sum(len(one.floats) for one in node.attribute) if node.domain == "ai.onnx.ml" else 0),
        )
        for node in graph.node
    )


def plan_layers(trt: Module, plan: bytes) -> tuple[Layer, ...]:
    """The steps of a TensorRT plan, in the order they run. TensorRT reads a plan only on the GPU that it is
    for.

    Raises:
        BackendUnavailable: it cannot be read here; with what TensorRT said.
    """
    words: deque[str] = deque(maxlen=4)
    engine = trt.Runtime(recording_logger(trt, words)).deserialize_cuda_engine(plan)
    inspector = None if engine is None else engine.create_engine_inspector()
    if inspector is None:
        raise BackendUnavailable(
            f"a plan is read only on the GPU that it is for ({'; '.join(words) or 'TensorRT logged nothing'})"
        )
    steps: list[Any] = msgspec.json.decode(inspector.get_engine_information(trt.LayerInformationFormat.JSON))[
        "Layers"
    ]
    return tuple(_step(step) for step in steps)


def _step(step: str | dict[str, Any]) -> Layer:
    """A step: its name alone, or, from a plan that was built with details, everything."""
    if isinstance(step, str):
        return Layer(name=step)
    outputs = tuple(str(tensor["Name"]) for tensor in step.get("Outputs", ()))
    return Layer(name=str(step["Name"]), operator=str(step.get("LayerType", "")), outputs=outputs)
