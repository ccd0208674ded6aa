"""The classes that a graph names: of its probabilities, and of the labels that it answers with as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_CLASSES: Final = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
_TEXTS: Final = ("classlabels_strings", "values_strings", "classes_strings")
_MOST: Final = 4096


def class_labels(model: ModelProto) -> tuple[str, ...]:
    """The classes of a classifier, in the order of its probabilities; empty where the graph names none or
    several sets."""
    nodes = model.graph.node
    for operator in ("ZipMap", ""):
        found = {
            labels
            for node in nodes
            if not operator or node.op_type == operator
            if (labels := _attribute(node, _CLASSES))
        }
        if len(found) == 1:
            return found.pop()
    return ()


def text_labels(model: ModelProto, output: str) -> tuple[str, ...]:
    """The texts that an output of strings can hold, from the nodes that it comes from; empty where they do
    not tell."""
    makers = {name: node for node in model.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[tuple[str, ...], None] = {}
    seen, waiting = set(), [output]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in tensors:
            found.update(dict.fromkeys(_texts(tensors[name])))
        if node := makers.get(name):
            if texts := _attribute(node, _TEXTS):
                found[texts] = None
                continue
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    found.update(dict.fromkeys(_texts(attribute.t)))
            waiting.extend(node.input)
    sets = list(found)
    return sets[0] if len(sets) == 1 else ()


def _attribute(node: NodeProto, names: tuple[str, ...]) -> tuple[str, ...]:
    for attribute in node.attribute:
        if attribute.name in names and (attribute.strings or attribute.ints):
            texts = [text.decode("utf-8", "replace") for text in attribute.strings]
            return tuple(dict.fromkeys(texts or map(str, attribute.ints)))
    return ()


def _texts(tensor: TensorProto) -> Iterator[tuple[str, ...]]:
    if 1 < len(tensor.string_data) <= _MOST:
        yield tuple(dict.fromkeys(text.decode("utf-8", "replace") for text in tensor.string_data))
