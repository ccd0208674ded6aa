"""Whether a graph reads NaN as a value that is missing: trees that were taught where missing values go, an
Imputer, IsNaN.

Only where NaN gets there as it was sent: an IsNaN behind a matrix product guards against overflow, and says
nothing about features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_KEEP_EACH_VALUE: Final = frozenset(
    {
        *(
            "Add",
            "Cast",
            "Concat",
            "Div",
            "Flatten",
            "Gather",
            "Identity",
            "Mul",
            "Reshape",
            "Slice",
            "Split",
        ),
        *("Squeeze", "Sub", "Transpose", "Unsqueeze"),
        *("ArrayFeatureExtractor", "FeatureVectorizer", "Scaler"),
    }
)
"""Operators behind which a feature that was NaN still is NaN, and no other is."""
_TREES: Final = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble"})
_TRACKS: Final = "nodes_missing_value_tracks_true"


def reads_missing(model: ModelProto, inputs: Iterable[str]) -> str:
    """How the graph reads NaN in its inputs, for messages; "" where it does not say that it does."""
    near = set(inputs)
    found: dict[str, None] = {}
    for node in model.graph.node:
        if near.isdisjoint(node.input):
            continue
        if node.op_type in _TREES and _tracks(node):
            found["trees that know missing values"] = None
        elif node.op_type in ("Imputer", "IsNaN"):
            found[node.op_type] = None
        elif node.op_type in _KEEP_EACH_VALUE:
            near.update(node.output)
    return ", ".join(found)


def _tracks(node: NodeProto) -> bool:
    return any(attribute.name == _TRACKS and any(attribute.ints) for attribute in node.attribute)
