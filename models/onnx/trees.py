"""The trees of a graph: how many, and how many of their thresholds float32 cannot hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_CLASSIC: Final = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_LEAF: Final = b"LEAF"


@dataclass(frozen=True, slots=True)
class Trees:
    """Counted over all ensembles of a graph.

    Attributes:
        trees: how many.
        thresholds: values that a feature is compared with.
        inexact: thresholds of float64 that are no float32: a feature between the two falls on the other side.
    """

    trees: int = 0
    thresholds: int = 0
    inexact: int = 0


NO_TREES: Final = Trees()


def count_trees(model: ModelProto) -> Trees:
    """The trees of a model; all zeros where it has none."""
    trees = thresholds = inexact = 0
    for node in model.graph.node:
        if node.op_type in _CLASSIC:
            found = _of_classic(node)
        elif node.op_type == "TreeEnsemble":
            found = _of_ensemble(node)
        else:
            continue
        trees += found.trees
        thresholds += found.thresholds
        inexact += found.inexact
    return Trees(trees, thresholds, inexact)


def inexact_in_float32(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
    """How many of these float64 values are no float32."""
    return int(np.count_nonzero(values != values.astype(np.float32)))


def _of_classic(node: NodeProto) -> Trees:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    branches = np.array([mode != _LEAF for mode in attributes["nodes_modes"].strings], np.bool_)
    inexact = 0
    if "nodes_values_as_tensor" in attributes:
        inexact = inexact_in_float32(_doubles(attributes["nodes_values_as_tensor"].t)[branches])
    trees = len(set(attributes["nodes_treeids"].ints))
    return Trees(trees, int(branches.sum()), inexact)


def _of_ensemble(node: NodeProto) -> Trees:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    values = _doubles(attributes["nodes_splits"].t)
    return Trees(len(attributes["tree_roots"].ints), len(values), inexact_in_float32(values))


def _doubles(tensor: object) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor), np.float64).reshape(-1)  # type: ignore[arg-type]
