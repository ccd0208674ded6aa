"""Plans are not believed: what is damaged is refused, and never runs out of its memory."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from onnx import helper
from tests.models.native.conftest import model_of, plan_of, run_plan

from sigd.models.native.backend import kernels
from sigd.models.native.plan import Function, Kind, Plan


def small_plan() -> bytes:
    draw = np.random.default_rng(0)
    weights = {"w": draw.standard_normal((6, 9)).astype(np.float32), "b": np.zeros(9, np.float32)}
    nodes = [
        helper.make_node("Gemm", ["features", "w", "b"], ["z"]),
        helper.make_node("Tanh", ["z"], ["answer"]),
    ]
    return plan_of(model_of(nodes, [6], [9], weights))


def test_every_damaged_byte_of_the_tables_is_refused_or_harmless() -> None:
    plan = small_plan()
    rows = np.ones((3, 6), np.float32)
    refused = 0
    for place in range(320):
        for value in (0, 1, 0x7F, 0xFF):
            damaged = bytearray(plan)
            damaged[place] = value
            try:
                run_plan(bytes(damaged), rows)
            except ValueError:
                refused += 1
    assert refused > 300


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100, 200])
def test_cut_plan_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"bytes|tables"):
        kernels().load(small_plan()[:size])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(poison: float) -> None:
    plan = Plan([4, 4])
    weights = np.eye(4, dtype=np.float32)
    weights[2, 1] = poison
    plan.add(Kind.DENSE, (0,), 4, (weights, np.zeros(4, np.float32)), (4, 4, Function.IDENTITY, 0))
    with pytest.raises(ValueError, match="NaN or an infinity"):
        kernels().load(plan.encode())


def test_buffer_that_is_read_before_it_is_written_is_refused() -> None:
    plan = Plan([4, 4])
    later = plan.buffer(4)
    plan.append(Kind.MAP, later, 1, (Function.RELU,))
    with pytest.raises(ValueError, match="before it is written"):
        kernels().load(plan.encode())


def test_answer_that_is_written_in_part_is_refused() -> None:
    plan = Plan([4, 4])
    plan.append(Kind.COPY, 0, 1, (0, 3, 0))
    with pytest.raises(ValueError, match="not written in full"):
        kernels().load(plan.encode())


def test_plan_of_another_version_is_refused() -> None:
    plan = bytearray(small_plan())
    struct.pack_into("<I", plan, 8, 99)
    with pytest.raises(ValueError, match="version 99"):
        kernels().load(plan)


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(LookupError, match="does not have the instruction set sse9"):
        kernels().load(small_plan(), "sse9")


def test_plan_may_lie_anywhere_in_memory() -> None:
    plan = small_plan()
    shifted = memoryview(b"x" + plan)[1:]
    assert kernels().load(shifted).features == 6


def test_runner_refuses_arrays_that_do_not_fit() -> None:
    engine = kernels().load(small_plan())
    good, answers = np.zeros((2, 6), np.float32), np.zeros((2, 9), np.float32)
    for inputs, outputs in (
        (np.zeros((2, 5), np.float32), answers),
        (np.zeros((2, 6), np.float64), answers),
        (np.zeros((3, 6), np.float32), answers),
        (good, np.zeros(18, np.float32)),
    ):
        with pytest.raises(ValueError):
            engine.runner(inputs, outputs)
    good.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        engine.runner(good, answers)
