"""Ensembles of trees: from ONNX's tables to preorder, every branch "at most the threshold, then true"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sigd.models.native.lowering.classical import ML, flat, transformed, two_classes
from sigd.models.native.lowering.graph import Array, Lowering, Node, Operand, Value, lowers
from sigd.models.native.plan import FLOAT_MAX, LEAF, MISSING_TRUE, Kind

_SMALLEST: Final = float(np.finfo(np.float32).smallest_normal)
_NODES_MAX: Final = 1 << 26


@dataclass(slots=True)
class _Preorder:
    """Nodes as a plan holds them."""

    sizes: list[int] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    """The row of ONNX's table of nodes of each leaf."""


def _attribute(node: Node, name: str, default: Any = None) -> Any:
    """Floats may stand in a tensor of doubles."""
    tensor = node.get(f"{name}_as_tensor")
    return node.get(name, default) if tensor is None else tensor


def below(value: float) -> float:
    """The largest float32 that is no denormal and smaller than a float32: denormal features count as zero."""
    smaller = float(np.nextafter(np.float32(value), np.float32(-np.inf)))
    if -_SMALLEST < smaller < 0.0:
        return -_SMALLEST
    return 0.0 if 0.0 < smaller < _SMALLEST else smaller


def at_most(value: float) -> float:
    """The float32 t with: x <= value exactly where x <= t, for every float32 x that is no denormal."""
    if value >= FLOAT_MAX:
        return FLOAT_MAX
    rounded = np.float32(value)
    threshold = float(rounded) if float(rounded) <= value else below(float(rounded))
    if -_SMALLEST < threshold < 0.0:
        return -_SMALLEST
    if 0.0 < threshold < _SMALLEST:
        return 0.0
    return float(np.clip(threshold, -FLOAT_MAX, FLOAT_MAX))


def less_than(value: float) -> float:
    """The float32 t with: x < value exactly where x <= t."""
    threshold = at_most(value)
    return threshold if threshold < value else at_most(below(threshold))


def _preorder(node: Node) -> _Preorder:
    """The trees in preorder, the true branch first. A branch that asks "greater" has its branches swapped."""
    made = _Preorder()
    tree_ids, node_ids = node.get("nodes_treeids"), node.get("nodes_nodeids")
    if not tree_ids or len(tree_ids) > _NODES_MAX:
        raise node.refuse("without nodes, or with too many")
    places = {key: place for place, key in enumerate(zip(tree_ids, node_ids, strict=True))}
    roots: dict[int, int] = {}
    children = set()
    for place, tree in enumerate(tree_ids):
        if node.get("nodes_modes")[place] != "LEAF":
            children.add((tree, node.get("nodes_truenodeids")[place]))
            children.add((tree, node.get("nodes_falsenodeids")[place]))
    for place, key in enumerate(zip(tree_ids, node_ids, strict=True)):
        if key not in children:
            if key[0] in roots:
                raise node.refuse(f"tree {key[0]} has two roots")
            roots[key[0]] = place
    table = _Table(node, places)
    for tree in dict.fromkeys(tree_ids):
        if tree not in roots:
            raise node.refuse(f"tree {tree} has no root")
        before = len(made.features)
        table.walk(tree, roots[tree], made)
        made.sizes.append(len(made.features) - before)
    return made


class _Table:
    """ONNX's table of nodes."""

    def __init__(self, node: Node, places: dict[tuple[int, int], int]) -> None:
        self._node = node
        self._places = places
        self._modes = node.get("nodes_modes")
        self._features = node.get("nodes_featureids")
        self._values = [float(value) for value in _attribute(node, "nodes_values")]
        self._true = node.get("nodes_truenodeids")
        self._false = node.get("nodes_falsenodeids")
        self._missing = node.get("nodes_missing_value_tracks_true") or [0] * len(self._modes)

    def walk(self, tree: int, root: int, made: _Preorder) -> None:
        """Append a tree."""
        left = [root]
        while left:
            place = left.pop()
            if len(made.features) > len(self._modes):
                raise self._node.refuse(f"tree {tree} runs in a circle")
            if self._modes[place] == "LEAF":
                made.features.append(LEAF)
                made.thresholds.append(0.0)
                made.leaves.append(place)
                continue
            threshold, swapped = self._condition(place)
            missing = bool(self._missing[place]) != swapped
            made.features.append(self._features[place] | (MISSING_TRUE if missing else 0))
            made.thresholds.append(threshold)
            yes, no = self._child(tree, self._true[place]), self._child(tree, self._false[place])
            left += (yes, no) if swapped else (no, yes)

    def _child(self, tree: int, number: int) -> int:
        try:
            return self._places[tree, number]
        except KeyError:
            raise self._node.refuse(f"tree {tree} has no node {number}") from None

    def _condition(self, place: int) -> tuple[float, bool]:
        """The threshold t and whether the branches are swapped: yes where x <= t, or no where x <= t."""
        mode, value = self._modes[place], self._values[place]
        if np.isnan(value):
            raise self._node.refuse("a threshold is NaN")
        if mode == "BRANCH_LEQ":
            return at_most(value), False
        if mode == "BRANCH_LT":
            return less_than(value), False
        if mode == "BRANCH_GT":
            return at_most(value), True
        if mode == "BRANCH_GTE":
            return less_than(value), True
        raise self._node.refuse(f"a branch of the mode {mode}")


@dataclass(frozen=True, slots=True)
class _Leaves:
    """What the leaves add.

    Attributes:
        targets: of each tree, where a tree adds to one target only.
        weights: (leaves, 1), or (leaves, all targets).
    """

    targets: list[int]
    weights: Array


def _leaves(node: Node, made: _Preorder, what: str, count: int) -> _Leaves:
    """What the attributes "target_*" or "class_*" say of each leaf."""
    key = zip(node.get("nodes_treeids"), node.get("nodes_nodeids"), strict=True)
    number_of = {pair: place for place, pair in enumerate(key)}
    leaf_of = {place: leaf for leaf, place in enumerate(made.leaves)}
    table = np.zeros((len(made.leaves), count), np.float64)
    used = np.zeros((len(made.leaves), count), bool)
    weights = np.asarray(_attribute(node, f"{what}_weights"), np.float64)
    names = [node.get(f"{what}_{part}") for part in ("treeids", "nodeids", "ids")]
    for tree, number, target, weight in zip(*names, weights, strict=True):
        leaf = leaf_of.get(number_of.get((tree, number), -1))
        if leaf is None or not 0 <= target < count:
            raise node.refuse("a weight belongs to no leaf, or to no target")
        table[leaf, target] += weight
        used[leaf, target] = True
    owners = np.repeat(np.arange(len(made.sizes)), [(size + 1) // 2 for size in made.sizes])
    targets = []
    for tree in range(len(made.sizes)):
        asked = np.flatnonzero(used[owners == tree].any(axis=0)) if count > 1 else np.array([0])
        if len(asked) > 1:
            return _Leaves([0] * len(made.sizes), table.astype(np.float32))
        targets.append(int(asked[0]) if len(asked) else 0)
    picked = table[np.arange(len(table)), np.array(targets)[owners]]
    return _Leaves(targets, picked.astype(np.float32).reshape(-1, 1))


def _sum(ctx: Lowering, node: Node, made: _Preorder, leaves: _Leaves, base: Array, average: bool) -> Value:
    value = flat(node)
    features = np.array(made.features, np.uint32)
    inner = (features & LEAF) != LEAF
    if inner.any() and (features[inner] & LEAF).max() >= value.width:
        raise node.refuse("looks at a feature that is not there")
    tensors = (
        np.array(made.sizes, np.uint32),
        features,
        np.array(made.thresholds, np.float32),
        np.array(leaves.targets, np.uint32),
        np.ascontiguousarray(leaves.weights),
        base.astype(np.float32),
    )
    params = (len(base), leaves.weights.shape[1], int(average))
    return ctx.add(Kind.TREES, [value], (len(base),), tensors, params)


def _base(node: Node, count: int) -> Array:
    base = np.asarray(_attribute(node, "base_values", []), np.float32)
    if base.size not in (0, count):
        raise node.refuse(f"{base.size} base values, expected none or {count}")
    return base if base.size else np.zeros(count, np.float32)


@lowers("TreeEnsembleRegressor", domain=ML)
def regressor(ctx: Lowering, node: Node) -> Sequence[Operand]:
    """A sum or a mean over trees for each target."""
    how = node.get("aggregate_function", "SUM")
    if how not in ("SUM", "AVERAGE"):
        raise node.refuse(f"with the aggregate {how}")
    targets = node.get("n_targets", 1)
    made = _preorder(node)
    leaves = _leaves(node, made, "target", targets)
    scores = _sum(ctx, node, made, leaves, _base(node, targets), how == "AVERAGE")
    return [transformed(ctx, node, scores)]


@lowers("TreeEnsembleClassifier", domain=ML)
def classifier(ctx: Lowering, node: Node) -> Sequence[Operand | None]:
    """The scores of the classes; the label itself is not covered."""
    names = node.get("classlabels_int64s") or node.get("classlabels_strings") or []
    count = len(names)
    made = _preorder(node)
    if count == 2 and set(node.get("class_ids") or []) == {0}:
        return [None, _binary(ctx, node, made)]
    leaves = _leaves(node, made, "class", count)
    scores = _sum(ctx, node, made, leaves, _base(node, count), False)
    return [None, transformed(ctx, node, scores)]


def _binary(ctx: Lowering, node: Node, made: _Preorder) -> Value:
    """Two classes that share one sum: it says how much speaks for the second one."""
    if node.get("post_transform", "NONE") not in ("NONE", "LOGISTIC"):
        raise node.refuse(f"two classes with one sum, and the transform {node.get('post_transform')}")
    base = np.asarray(_attribute(node, "base_values", []), np.float32)
    if base.size > 1:
        raise node.refuse("two classes with one sum, and two base values")
    leaves = _leaves(node, made, "class", 1)
    score = _sum(ctx, node, made, leaves, base if base.size else np.zeros(1, np.float32), False)
    weights = np.asarray(_attribute(node, "class_weights"), np.float64)
    plain = node.get("post_transform", "NONE") == "NONE"
    return two_classes(ctx, node, score, probability=plain and bool((weights >= 0).all()))
