"""An ensemble of trees of an ONNX file in LightGBM's own format, so that LightGBM runs the same trees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto

_NUMERICAL = 2
"""LightGBM's decision type: x <= threshold goes left, and no value is missing."""


def lightgbm_text(model: ModelProto) -> str | None:
    """The model as LightGBM saves one; None where the file is anything else than one TreeEnsembleRegressor of
    one output that adds up trees of `x <= threshold`.

    Args:
        model: its graph has one input of shape [batch, features].
    """
    from onnx import helper

    if [node.op_type for node in model.graph.node] != ["TreeEnsembleRegressor"]:
        return None
    attributes = {one.name: helper.get_attribute_value(one) for one in model.graph.node[0].attribute}
    modes = set(attributes["nodes_modes"])
    plain = modes <= {b"BRANCH_LEQ", b"LEAF"} and attributes.get("aggregate_function", b"SUM") == b"SUM"
    plain &= attributes.get("post_transform", b"NONE") == b"NONE" and not attributes.get("base_values")
    if not plain or attributes.get("n_targets", 1) != 1:
        return None
    features = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    weights = {
        (tree, node): weight
        for tree, node, weight in zip(
            attributes["target_treeids"],
            attributes["target_nodeids"],
            attributes["target_weights"],
            strict=True,
        )
    }
    columns = ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids")
    nodes: dict[int, dict[int, tuple[Any, ...]]] = {}
    for tree, node, *rest in zip(*(attributes[f"nodes_{name}"] for name in columns), strict=True):
        nodes.setdefault(tree, {})[node] = tuple(rest)
    head = [
        *("tree", "version=v4", "num_class=1", "num_tree_per_iteration=1", "label_index=0"),
        f"max_feature_idx={features - 1}",
        "objective=regression",
        "feature_names=" + " ".join(f"f{place}" for place in range(features)),
        "feature_infos=" + " ".join("[-100:100]" for _ in range(features)),
    ]
    trees = [
        _tree(number, nodes[tree], weights, tree) + "\n\n\n" for number, tree in enumerate(sorted(nodes))
    ]
    head.append("tree_sizes=" + " ".join(str(len(tree)) for tree in trees))
    return "\n".join(head) + "\n\n" + "".join(trees) + "end of trees\n\npandas_categorical:null\n"


def _tree(
    number: int, nodes: dict[int, tuple[Any, ...]], weights: dict[tuple[int, int], float], tree: int
) -> str:
    inner = {node: place for place, node in enumerate(n for n, one in nodes.items() if one[0] != b"LEAF")}
    leaves = {node: place for place, node in enumerate(n for n, one in nodes.items() if one[0] == b"LEAF")}

    def child(node: int) -> int:
        return inner[node] if node in inner else -1 - leaves[node]

    splits = [nodes[node] for node in inner]
    lines = {
        "Tree": [number],
        "num_leaves": [len(leaves)],
        "num_cat": [0],
        "split_feature": [feature for _, feature, *_ in splits],
        "split_gain": [1] * len(splits),
        "threshold": [repr(float(threshold)) for _, _, threshold, *_ in splits],
        "decision_type": [_NUMERICAL] * len(splits),
        "left_child": [child(left) for *_, left, _ in splits],
        "right_child": [child(right) for *_, right in splits],
        "leaf_value": [repr(float(weights.get((tree, node), 0.0))) for node in leaves],
        "leaf_weight": [1] * len(leaves),
        "leaf_count": [1] * len(leaves),
        "internal_value": [0] * len(splits),
        "internal_weight": [0] * len(splits),
        "internal_count": [1] * len(splits),
        "is_linear": [0],
        "shrinkage": [1],
    }
    return "\n".join(f"{name}={' '.join(map(str, values))}" for name, values in lines.items())
