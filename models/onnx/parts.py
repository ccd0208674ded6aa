"""An ONNX model in two parts: the graph, which is small, and the large weights, one behind the other.

ONNX Runtime parses a model while it holds Python's lock, and takes the longer the more weights lie inside: 18
ms for 34 MB, in which a thread that serves stands still. Weights beside the graph are copied later, without
the lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from onnx import ModelProto

WEIGHTS_FILE: Final = "weights"
"""What the graph calls the second part, as if it were a file beside it."""
_LARGE_BYTES: Final = 4096
_ALIGNMENT_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class OnnxParts:
    """Both parts of one model.

    Attributes:
        graph: the serialised model, its large weights left out.
        weights: those, each aligned to 64 bytes; the graph says which lies where. Empty where there are none.
    """

    graph: bytes
    weights: bytes | memoryview


def take_apart(model: ModelProto) -> OnnxParts:
    """The parts of a model that has all its weights inside. Small ones, and those not kept as raw bytes, stay
    there.

    The message itself loses its weights: the parser's library ends the process where it has no memory for a
    copy.
    """
    from onnx import TensorProto

    weights = bytearray()
    for tensor in model.graph.initializer:
        content = tensor.raw_data
        if len(content) < _LARGE_BYTES:
            continue
        weights += bytes(-len(weights) % _ALIGNMENT_BYTES)
        for key, value in (("location", WEIGHTS_FILE), ("offset", len(weights)), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        weights += content
    return OnnxParts(model.SerializeToString(), bytes(weights))
