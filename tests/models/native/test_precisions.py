"""Weights in fewer bits: near the model in float32, and the same bits everywhere."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.models.native.conftest import Run, chain_of_layers, plan_of, run_plan
from tests.models.native.test_lowering import recurrent, trees

from sigd.models.errors import ModelRefused
from sigd.models.manifest import PrecisionName
from sigd.models.native.backend import kernels
from sigd.models.native.lowering.precision import to_bf16
from sigd.models.native.plan import Function, Kind, Plan

ERRORS: Final[dict[PrecisionName, float]] = {"fp16": 2e-3, "bf16": 2e-2, "int8": 0.1}
"""The most that an answer moves, as a share of the largest."""


@given(
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    precision=st.sampled_from(sorted(ERRORS)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_narrow_layers_give_the_same_bits_and_stay_near(
    same_bits: Run, sizes: list[int], precision: PrecisionName, seed: int
) -> None:
    model = chain_of_layers([*sizes, 30, 3], ["Relu", "Tanh"], seed)
    rows = np.random.default_rng(seed).standard_normal((13, sizes[0])).astype(np.float32)
    whole, narrow = same_bits(model, rows)["plain"], same_bits(model, rows, precision)["plain"]
    assert np.abs(whole - narrow).max() <= ERRORS[precision] * max(1.0, np.abs(whole).max())


@pytest.mark.parametrize("precision", sorted(ERRORS))
@pytest.mark.parametrize(
    ("operation", "more"), [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 0})]
)
def test_narrow_recurrent_layers_give_the_same_bits_and_stay_near(
    same_bits: Run, operation: str, more: dict[str, int], precision: PrecisionName
) -> None:
    model = recurrent(operation, "Y", "bidirectional", **more)
    rows = np.random.default_rng(1).standard_normal((9, 5, 3)).astype(np.float32)
    whole, narrow = same_bits(model, rows)["plain"], same_bits(model, rows, precision)["plain"]
    assert 0 < np.abs(whole - narrow).max() <= ERRORS[precision]


def test_narrow_weights_take_less_room() -> None:
    model = chain_of_layers([100, 200, 3], ["Relu"], 0)
    sizes = {name: len(plan_of(model, name)) for name in ("fp32", *ERRORS)}
    assert sizes["bf16"] == sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < 0.4 * sizes["fp32"]


def test_bf16_is_the_nearest_and_of_two_the_even_one() -> None:
    weights = np.array([1.0, 1.00390625, 1.01171875, -1.0051, 3.4028235e38, 0.0], np.float32)
    found = (to_bf16(weights).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(
        found, np.array([1.0, 1.0, 1.015625, -1.0078125, 3.3895314e38, 0.0], np.float32)
    )


def test_column_of_zeros_stays_zero() -> None:
    model = chain_of_layers([40, 30, 12], ["Relu"], 0)
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "b1"):
            tensor.raw_data = bytes(len(tensor.raw_data))
    assert not run_plan(plan_of(model, "int8"), np.ones((2, 40), np.float32)).any()


def test_weight_beyond_float16_is_refused_even_without_kernels() -> None:
    model = chain_of_layers([4, 30, 3], ["Relu"], 0)
    model.graph.initializer[0].raw_data = np.full((4, 30), 7e4, np.float32).tobytes()
    with pytest.raises(ModelRefused, match="a weight of 70000 is beyond 65504"):
        plan_of(model, "fp16")


def test_model_without_layers_is_refused_even_without_kernels() -> None:
    with pytest.raises(ModelRefused, match="has no layer of more than 8 outputs, so int8 changes nothing"):
        plan_of(trees(), "int8")


@pytest.mark.parametrize(
    ("outputs", "scales", "why"),
    [
        (12, 11, "tensor 2 has 11 elements"),
        (12, None, "has no tensor 2"),
        (4, 4, "8-bit weights for 4 outputs"),
    ],
)
def test_plan_whose_scales_do_not_fit_is_refused(outputs: int, scales: int | None, why: str) -> None:
    plan = Plan([5, outputs])
    weights = (np.ones((5, outputs), np.int8), np.zeros(outputs, np.float32))
    given = weights if scales is None else (*weights, np.ones(scales, np.float32))
    plan.add(Kind.DENSE, (0,), outputs, given, (5, outputs, Function.IDENTITY, 0))
    plan.ops[-1].out = 1
    with pytest.raises(ValueError, match=why):
        kernels().load(plan.encode())
