"""The kernels: the same bits everywhere, and near what ONNX Runtime answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from tests.models.native.conftest import Run, chain_of_layers, model_of, on_onnxruntime, plan_of, run_plan

from sigd.models.native.backend import kernels

PROPERTY = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FUNCTIONS = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh", "HardSigmoid", "Gelu", "Softplus"),
    *("Softsign", "Exp", "Abs", "Neg", "Erf", "HardSwish", "Mish", "Sign", "Floor", "Ceil", "Round"),
    *("ThresholdedRelu", "Softmax", "LogSoftmax"),
)


@given(
    sizes=st.lists(st.integers(1, 150), min_size=2, max_size=4),
    functions=st.lists(st.sampled_from(FUNCTIONS), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
@PROPERTY
def test_layers_give_the_same_bits_on_every_instruction_set_and_in_every_batch(
    same_bits: Run, sizes: list[int], functions: list[str], seed: int
) -> None:
    rows = np.random.default_rng(seed).standard_normal((17, sizes[0])).astype(np.float32)
    model = chain_of_layers(sizes, functions, seed)
    answer = same_bits(model, rows)["plain"]
    # Steps, and exponentials of exponentials, make a last bit any difference.
    if not {"Floor", "Ceil", "Round", "Sign", "ThresholdedRelu", "Exp"} & set(functions):
        np.testing.assert_allclose(answer, on_onnxruntime(model, rows), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_is_near_the_reference(same_bits: Run, function: str) -> None:
    width = 64
    model = model_of([helper.make_node(function, ["features"], ["answer"])], [width], [width])
    spread = np.linspace(-12, 12, 16 * width, dtype=np.float32).reshape(16, width)
    tiny = np.random.default_rng(0).standard_normal((16, width)).astype(np.float32) * 1e-3
    rows = np.concatenate([spread, tiny, np.zeros((1, width), np.float32)])
    with np.errstate(all="ignore"):
        expected = on_onnxruntime(model, rows)
    np.testing.assert_allclose(same_bits(model, rows)["plain"], expected, rtol=3e-6, atol=4e-7)


def test_functions_at_their_ends(same_bits: Run) -> None:
    ends = np.array([[-1e30, -200.0, -89.0, 0.0, 89.0, 200.0, 1e30, np.inf]], np.float32)
    for function, expected in {
        "Exp": [0, 0, 2.2274e-39, 1, np.inf, np.inf, np.inf, np.inf],
        "Tanh": [-1, -1, -1, 0, 1, 1, 1, 1],
        "Sigmoid": [0, 0, 0, 0.5, 1, 1, 1, 1],
        "Erf": [-1, -1, -1, 0, 1, 1, 1, 1],
    }.items():
        model = model_of([helper.make_node(function, ["features"], ["answer"])], [8], [8])
        np.testing.assert_allclose(
            same_bits(model, ends)["plain"][0], np.array(expected, np.float32), atol=1e-7
        )


@pytest.mark.parametrize("function", [*FUNCTIONS, "Sqrt", "Log"])
def test_nan_stays_nan(function: str) -> None:
    model = model_of([helper.make_node(function, ["features"], ["answer"])], [4], [4])
    rows = np.full((1, 4), np.nan, np.float32)
    for name in kernels().instruction_sets():
        assert np.isnan(run_plan(plan_of(model), rows, name)).all(), name


def forest(
    draw: np.random.Generator, trees: int, leaves: int, features: int, mode: str, grid: int
) -> dict[str, Any]:
    """Attributes of an ensemble of trees; thresholds from a grid, so that some are equal."""
    table: dict[str, list[Any]] = {
        name: []
        for name in (
            *("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_modes"),
            *("nodes_truenodeids", "nodes_falsenodeids", "target_treeids", "target_nodeids"),
            *("target_ids", "target_weights", "nodes_missing_value_tracks_true"),
        )
    }
    for tree in range(trees):
        children: dict[int, tuple[int, int]] = {}
        open_nodes = [0]
        for _ in range(int(draw.integers(0, leaves))):
            picked = open_nodes.pop(int(draw.integers(len(open_nodes))))
            first = 2 * len(children) + 1
            children[picked] = (first, first + 1)
            open_nodes += [first, first + 1]
        for node in range(2 * len(children) + 1):
            inner = node in children
            table["nodes_treeids"].append(tree)
            table["nodes_nodeids"].append(node)
            table["nodes_featureids"].append(int(draw.integers(features)) if inner else 0)
            table["nodes_values"].append(
                float(np.float32(draw.integers(-grid, grid) / grid * 3)) if inner else 0.0
            )
            table["nodes_modes"].append(mode if inner else "LEAF")
            table["nodes_truenodeids"].append(children[node][0] if inner else 0)
            table["nodes_falsenodeids"].append(children[node][1] if inner else 0)
            table["nodes_missing_value_tracks_true"].append(int(draw.integers(2)))
            if not inner:
                table["target_treeids"].append(tree)
                table["target_nodeids"].append(node)
                table["target_ids"].append(0)
                table["target_weights"].append(float(np.float32(draw.standard_normal())))
    return table


def tree_model(attributes: dict[str, Any], features: int, targets: int = 1, **more: Any) -> onnx.ModelProto:
    node = helper.make_node(
        "TreeEnsembleRegressor", ["features"], ["answer"], domain="ai.onnx.ml", n_targets=targets,
        **attributes, **more,
    )  # fmt: skip
    return model_of([node], [features], [targets])


@given(
    trees=st.integers(1, 40),
    leaves=st.sampled_from([1, 2, 8, 31, 32, 33, 64, 65, 200]),
    features=st.sampled_from([1, 3, 64, 300]),
    mode=st.sampled_from(["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE"]),
    grid=st.sampled_from([1, 10, 3000]),
    seed=st.integers(0, 2**32 - 1),
)
@PROPERTY
def test_trees_agree_with_onnxruntime(
    same_bits: Run, trees: int, leaves: int, features: int, mode: str, grid: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    model = tree_model(forest(draw, trees, leaves, features, mode, grid), features, base_values=[0.25])
    # On the grid, so that a feature is often the threshold itself.
    rows = (draw.integers(-grid, grid, (19, features)) / grid * 3).astype(np.float32)
    rows[3] = np.float32(1e-40)  # counts as zero
    answer = same_bits(model, rows)["plain"]
    expected = on_onnxruntime(model, np.where(np.abs(rows) < 1.2e-38, np.float32(0), rows))
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5 * trees)


def test_missing_values_take_the_branch_that_the_trees_say(same_bits: Run) -> None:
    draw = np.random.default_rng(5)
    model = tree_model(forest(draw, 20, 16, 4, "BRANCH_LEQ", 50), 4)
    rows = draw.standard_normal((12, 4)).astype(np.float32)
    rows[draw.random((12, 4)) < 0.4] = np.nan
    answer = same_bits(model, rows)["plain"]
    np.testing.assert_allclose(answer, on_onnxruntime(model, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("each_leaf", ["one target", "all targets"])
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE"])
def test_trees_with_several_targets(same_bits: Run, each_leaf: str, aggregate: str) -> None:
    draw = np.random.default_rng(9)
    table = forest(draw, 30, 24, 6, "BRANCH_LEQ", 100)
    if each_leaf == "one target":
        table["target_ids"] = [tree % 3 for tree in table["target_treeids"]]
    else:
        count = len(table["target_ids"])
        table["target_ids"] = [0] * count + [1] * count + [2] * count
        for name in ("target_treeids", "target_nodeids"):
            table[name] = table[name] * 3
        table["target_weights"] = draw.standard_normal(3 * count).tolist()
    model = tree_model(table, 6, 3, aggregate_function=aggregate, base_values=[0.5, -1.0, 2.0])
    rows = draw.standard_normal((25, 6)).astype(np.float32)
    answer = same_bits(model, rows)["plain"]
    np.testing.assert_allclose(answer, on_onnxruntime(model, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize(("classes", "one"), [(2, 0), (2, 1), (3, 0)])
def test_classifier_gives_the_scores_of_onnxruntime(
    same_bits: Run, classes: int, one: int, transform: str, positive: bool
) -> None:
    if one == 0 and classes == 2 and transform == "SOFTMAX":
        pytest.skip("refused, see test_lowering.py")
    draw = np.random.default_rng(3)
    table = forest(draw, 12, 8, 5, "BRANCH_LEQ", 100)
    trees = table["target_treeids"]
    for name in ("treeids", "nodeids", "weights"):
        table[f"class_{name}"] = table.pop(f"target_{name}")
    table.pop("target_ids")
    table["class_ids"] = [one if classes == 2 else tree % classes for tree in trees]
    if positive:
        table["class_weights"] = [abs(weight) / 12 for weight in table["class_weights"]]
    node = helper.make_node(
        "TreeEnsembleClassifier", ["features"], ["label", "answer"], domain="ai.onnx.ml",
        classlabels_int64s=list(range(classes)), post_transform=transform, **table,
    )  # fmt: skip
    model = model_of([node], [5], [classes])
    rows = draw.standard_normal((25, 5)).astype(np.float32)
    answer = same_bits(model, rows)["plain"]
    np.testing.assert_allclose(answer, on_onnxruntime(model, rows), rtol=1e-5, atol=1e-5)


def test_denormals_count_as_zero_whatever_the_thread_is_set_to() -> None:
    model = model_of(
        [helper.make_node("Mul", ["features", "w"], ["answer"])],
        [4],
        [4],
        {"w": np.full(4, 2.0**100, np.float32)},
    )
    rows = np.full((3, 4), 1e-40, np.float32)
    for name in kernels().instruction_sets():
        assert run_plan(plan_of(model), rows, name).tolist() == [[0.0] * 4] * 3


def test_zeros_that_are_left_out_change_no_bit() -> None:
    """A row and a batch: the one leaves out what ReLU made zero, the other does not."""
    model = chain_of_layers([40, 200, 200, 5], ["Relu"], 1)
    rows = np.random.default_rng(1).standard_normal((12, 40)).astype(np.float32)
    plan = plan_of(model)
    for name in kernels().instruction_sets():
        whole = run_plan(plan, rows, name)
        assert whole.tobytes() == run_plan(plan, rows, name, 1).tobytes()
