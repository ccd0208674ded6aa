"""Gradient-boosted trees of the zoo, one TreeEnsembleRegressor."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Final

from sigd.models.zoo.draws import Draws
from sigd.models.zoo.networks import INPUT, Graph

if TYPE_CHECKING:
    from onnx import ModelProto

LEAVES: Final = 31
"""Of each tree: what LightGBM grows unless it is told otherwise."""
_REACH: Final = 2.0
"""Thresholds lie within so many standard deviations of a feature."""


class _Tables:
    """The attributes of the node: one entry for each node of each tree, and for each leaf."""

    def __init__(self) -> None:
        names = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
        self.nodes: dict[str, list[int | float | str]] = {f"nodes_{name}": [] for name in names}
        self.leaves: dict[str, list[int | float]] = {
            f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")
        }

    def node(self, tree: int, number: int, feature: int, value: float, children: tuple[int, int]) -> None:
        mode = "BRANCH_LEQ" if any(children) else "LEAF"
        entry: tuple[int | float | str, ...] = (tree, number, feature, value, mode, *children)
        for column, part in zip(self.nodes.values(), entry, strict=True):
            column.append(part)

    def leaf(self, tree: int, number: int, weight: float) -> None:
        self.node(tree, number, 0, 0.0, (0, 0))
        for column, part in zip(self.leaves.values(), (tree, number, 0, weight), strict=True):
            column.append(part)


def trees(features: int, count: int, draws: Draws) -> ModelProto:
    """The sum of `count` trees of `LEAVES` leaves, each grown leaf by leaf: [batch, features] -> [batch, 1].

    A threshold lies within what the branches above it leave of its feature, so every leaf can be reached.
    """
    tables = _Tables()
    for tree in range(count):
        _grow(tables, draws, tree, features, 1 / sqrt(count))
    graph = Graph("trees")
    graph.node(
        "TreeEnsembleRegressor",
        [INPUT],
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
        **tables.nodes,
        **tables.leaves,
    )
    return graph.model([features], 1)


def _grow(tables: _Tables, draws: Draws, tree: int, features: int, weight_max: float) -> None:
    # Of each leaf that may still be split: what is left of the features that were split on above it.
    open_leaves: list[tuple[int, dict[int, tuple[float, float]]]] = [(0, {})]
    made = 1
    while len(open_leaves) < LEAVES:
        number, bounds = open_leaves.pop(draws.below(len(open_leaves)))
        feature = draws.below(features)
        low, high = bounds.get(feature, (-_REACH, _REACH))
        threshold = float((draws.uniform(1.0, 1)[0] * (high - low) + high + low) / 2)
        tables.node(tree, number, feature, threshold, (made, made + 1))
        open_leaves.append((made, {**bounds, feature: (low, threshold)}))
        open_leaves.append((made + 1, {**bounds, feature: (threshold, high)}))
        made += 2
    for (number, _), weight in zip(open_leaves, draws.uniform(weight_max, LEAVES), strict=True):
        tables.leaf(tree, number, float(weight))
