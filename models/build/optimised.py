"""The ONNX Runtime engine: the model with ONNX Runtime's graph optimisations already applied and saved."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from sigd.models.errors import ModelRefused

if TYPE_CHECKING:
    from onnx import ModelProto

DEFAULT_LEVEL: Final = 2
"""Every fusion that holds on all processors. What depends on the processor (the layout of convolutions) is
left to the backend, which optimises again when it opens the engine, so nothing is lost."""
LAYOUT_LEVEL: Final = 3
"""From here on layouts are chosen for this processor, and the engine fits no other."""
_LOG_FATAL: Final = 4
_NO_OPERATOR: Final = re.compile(r"(?P<domain>[\w.]*):(?P<operator>\w+)\(-?\d+\) is not a registered")
_NO_KERNEL: Final = re.compile(
    r"implementation for (?P<operator>[\w.:]+)\(\d+\) node with name '(?P<node>[^']*)'"
)


def optimise(onnxruntime: ModuleType, model: ModelProto, path: Path, level: int) -> bytes:
    """The optimised model, serialised.

    Args:
        onnxruntime: the module.
        model: the graph in its final precision. Every node has a name.
        path: the model file, for messages.
        level: 0 nothing, 1 basic, 2 extended, 3 and more everything (see LAYOUT_LEVEL).

    Raises:
        ModelRefused: ONNX Runtime does not run it; with the node where an operator is to blame.
    """
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        levels.ORT_DISABLE_ALL,
        levels.ORT_ENABLE_BASIC,
        levels.ORT_ENABLE_EXTENDED,
        levels.ORT_ENABLE_ALL,
    )[min(level, LAYOUT_LEVEL)]
    options.log_severity_level = _LOG_FATAL
    # ONNX Runtime writes to a path only. A file in memory keeps a full disk out of its error messages.
    with open(os.memfd_create("sigd-optimised"), "rb") as file:
        options.optimized_model_filepath = f"/proc/self/fd/{file.fileno()}"
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ModelRefused(
                f"{path}: ONNX Runtime {onnxruntime.__version__} {_explained(str(error), model)}"
            ) from error
        return file.read()


def _explained(message: str, model: ModelProto) -> str:
    """The reason that ONNX Runtime gives, with the node where it names an operator only."""
    no_kernel, no_operator = _NO_KERNEL.search(message), _NO_OPERATOR.search(message)
    if no_kernel is not None:
        operator, nodes = no_kernel["operator"], [no_kernel["node"]]
    elif no_operator is not None:
        operator = no_operator["operator"]
        domain = no_operator["domain"].replace("ai.onnx", "")
        nodes = [
            node.name
            for node in model.graph.node
            if node.op_type == operator and node.domain.replace("ai.onnx", "") == domain
        ]
        operator = f"{domain}.{operator}" if domain else operator
    else:
        return f"refuses it: {message}"
    return (
        f"does not support operator {operator} (node {', '.join(map(repr, nodes))}) on the CPU: export the"
        " model without it"
    )
